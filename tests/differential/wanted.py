"""Where Cloche means to differ from stock Celery, each with its reason: docs/differences.md."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.differential.programs import Program
from tests.differential.story import Difference


@dataclass(frozen=True, slots=True)
class Wanted:
    """Differences whose kind matches ``kind``, under ``launcher``, pool and condition."""

    kind: str
    reason: str
    pools: tuple[str, ...] = ()
    launchers: tuple[str, ...] = ()
    when: Callable[[Difference, Program], bool] = lambda difference, program: True

    def explains(self, difference: Difference, program: Program, launcher: str, pool: str) -> bool:
        return (
            re.fullmatch(self.kind, difference.kind) is not None
            and (not self.pools or pool in self.pools)
            and (not self.launchers or launcher in self.launchers)
            and self.when(difference, program)
        )


def _apart(difference: Difference, program: Program) -> bool:
    """Both sides name a part of a canvas whose parts run at the same time."""
    label = r'"<(n\d+|uuid)>"'
    both = re.fullmatch(label, difference.stock) and re.fullmatch(label, difference.ours)
    return both is not None and bool({"group", "chord"} & _shapes(program))


def _shapes(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {str(value["c"])} if "c" in value else set()
        return own.union(*(_shapes(inner) for inner in value.values()))
    if isinstance(value, list):
        return set().union(*(_shapes(inner) for inner in value))
    return set()


def _refused(difference: Difference, program: Program) -> bool:
    """The difference is about a task whose message is refused."""
    odd = [
        step["call"]["n"]
        for step in program
        if step["do"] == "call" and "nonsense" in step["call"].get("odd", {}).values()
    ]
    return bool(odd) and (difference.path == "hung" or difference.path.split("/")[1] in odd)


def _revoked_early(difference: Difference, program: Program) -> bool:
    """It is about having received a task that was revoked before it was due."""
    revoked = [step["n"] for step in program if step["do"] == "revoke"]
    return (
        difference.path.split("/")[1] in revoked
        and re.search(r"celery.worker.strategy|task.received", difference.stock) is not None
        and not re.search(r"task_revoked|task_prerun|app.trace", difference.stock)
        and (difference.ours == "absent" or difference.ours[0] == "0")
    )


def _terminates(program: Program) -> bool:
    return any(step["do"] == "revoke" and "terminate" in step.get("o", {}) for step in program)


def _calls(value: Any) -> list[dict[str, Any]]:
    """All calls of tasks in a program, those inside canvases and bodies too."""
    if isinstance(value, list):
        return [call for inner in value for call in _calls(inner)]
    if not isinstance(value, dict):
        return []
    own = [value] if "task" in value and "n" in value else []
    return own + [call for inner in value.values() for call in _calls(inner)]


#: Kinds of values that JSON cannot say.
_NO_JSON = ("set", "opaque", "seconds")


def _unwritable(difference: Difference, program: Program) -> bool:
    """It is about a call whose arguments only its own serializer can write."""
    odd = [
        call["n"]
        for call in _calls(program)
        if (call["task"] == "pickled" or call.get("o", {}).get("serializer") == "pickle")
        and any(f'"$": "{kind}"' in json.dumps(call.get("v")) for kind in _NO_JSON)
    ]
    parts = difference.path.split("/")
    return bool(odd) and (parts[0] in ("hung", "left", "steps") or parts[1] in odd)


def _same_id(difference: Difference, program: Program) -> bool:
    """It is about calls that were given one id and are made more than once: of which one a result
    or an event is depends on which ran last."""
    parts = difference.path.split("/")
    if len(parts) < 2:
        return False
    made = sum(_times(step, parts[1]) for step in program)
    return made > 1


def _times(step: dict[str, Any], name: str) -> int:
    """How often a step makes the call ``name`` with an id of its own, at least."""
    inside = [c for c in _calls(step) if c["n"] == name and c.get("o", {}).get("own_id")]
    return len(inside) * int(step.get("times", 1)) * max(1, len(step.get("values", ())))


def _replaced(difference: Difference, program: Program) -> bool:
    """It is about a task that hands its id on to another, which may begin before it has ended."""
    name = difference.path.split("/")[1]
    found = [call for call in _calls(program) if call["n"] == name]
    return any(step[0] == "replace" for call in found for step in call.get("s", ()))


def _expired_early(difference: Difference, program: Program) -> bool:
    """It is about a task that expires before it is due."""
    name = difference.path.split("/")[1]
    options = [call.get("o", {}) for call in _calls(program) if call["n"] == name]
    return any(
        isinstance(one.get("expires"), int | float) and one["expires"] < one.get("countdown", 0)
        for one in options
    ) and (difference.ours == "absent" or difference.ours[0] == "0")


def _forked(difference: Difference, program: Program) -> bool:
    return "TimeoutError" in difference.stock and any(step["do"] == "fork" for step in program)


def _stock_hangs_in_a_fork(difference: Difference, program: Program) -> bool:
    nothing = difference.stock == "absent" or (difference.path, difference.stock) == (
        "hung",
        "true",
    )
    return nothing and any(step["do"] == "fork" for step in program)


#: Differs from run to run of stock Celery itself.
CHANCE = (
    Wanted(
        r"tasks/.*/pace/\*",
        "stock comes late where the machine is loaded",
        when=lambda difference, program: difference.stock == '"late"',
    ),
    Wanted(
        r"tasks/.*/(parent_id|root_id)",
        "the body of a chord is the child, and of the tree, of whichever part ends last",
        when=_apart,
    ),
    Wanted(
        r"steps/\*",
        "stock: get() in a process that was forked from one that has waited for a result may hear "
        "nothing, because both read from one connection",
        when=_forked,
    ),
    Wanted(
        r"(hung|handles/\*.*|steps/.*|tasks/\*.*)",
        "stock: a producer that forks may hang in the child, and with it whatever it would have "
        "done next",
        when=_stock_hangs_in_a_fork,
    ),
    Wanted(
        r"(handles|tasks)/.*",
        "several tasks under one id run at the same time, in any order",
        when=_same_id,
    ),
    Wanted(
        r"tasks/\*/\*/signals of attempt \*/.*",
        "what replaces a task has its id, and may begin before the other's last signals",
        when=_replaced,
    ),
    Wanted(
        r"tasks/\*/\*/signals of attempt \*/\*/stored",
        "a process that is terminated tidies up while its parent stores REVOKED: either is first",
        pools=("prefork",),
        when=lambda difference, program: (
            _terminates(program) and {difference.stock, difference.ours} == {"null", '"REVOKED"'}
        ),
    ),
)

#: Kinds the command line does not want to look at.
IGNORED: list[str] = []

WANTED: tuple[Wanted, ...] = (
    Wanted(
        r"(hung|left/.*|steps/.*|handles/\*/.*"
        r"|tasks/\*/\*/(meta|ended|logs|signals of attempt \*).*)",
        "an extended result whose arguments the result's serializer cannot write (pickled "
        "sets, JSON "
        "results) is stored; on stock the task ends with an internal error and no result",
        when=_unwritable,
    ),
    Wanted(
        r"tasks/\*/\*/end/\*/how",
        "what ends in a body that is terminated is a CancelledError at its `await` (a plain "
        "body: at "
        "its next bytecode), where prefork ends the process with SystemExit",
        pools=("asyncio",),
        when=lambda difference, program: (
            _terminates(program)
            and difference.stock == '"leave SystemExit"'
            and difference.ours == '"leave CancelledError"'
        ),
    ),
    Wanted(
        r"tasks/\*/\*/signals of attempt \*/\*/stored",
        "REVOKED may be stored before a terminated body has tidied up: on prefork the "
        "parent stores "
        "it when the process is gone",
        pools=("asyncio",),
        when=lambda difference, program: _terminates(program) and difference.ours == '"REVOKED"',
    ),
    Wanted(
        "worker",
        "the worker goes on; stock's ends (`Unrecoverable error: EncodeError`) where a revoked or "
        "expired task has arguments that the result's serializer cannot write and results are "
        "extended",
        when=lambda difference, program: difference.stock == '"ended"',
    ),
    Wanted(
        r"(handles/\*/.*|tasks/\*/\*/(meta|ended/length)|hung)",
        "a message that the worker refuses (an `eta` or `expires` that is no time) is told: the "
        "state is FAILURE with InvalidTaskError and there is an event task-failed; on stock "
        "nobody is told, and whoever waits does so for ever",
        when=_refused,
    ),
    Wanted(
        r"tasks/\*/\*/(logs/length|received/length|consumer signals)",
        "a task with a countdown waits at the broker, not in a worker's memory: the worker says "
        "`received` (log, event task-received, signal task_received) when it is due, and nothing "
        "if it is revoked or expires before",
        when=lambda difference, program: (
            _revoked_early(difference, program) or _expired_early(difference, program)
        ),
    ),
)


def explanation(
    difference: Difference, program: Program, launcher: str, pool: str
) -> Wanted | None:
    """The entry that wants a difference; None: nobody does."""
    if any(re.fullmatch(kind, difference.kind) for kind in IGNORED):
        return Wanted(difference.kind, "not looked at")
    return next(
        (one for one in (*WANTED, *CHANCE) if one.explains(difference, program, launcher, pool)),
        None,
    )


DOCUMENT = Path(__file__).parents[2] / "docs" / "differences.md"
_BEGIN = "<!-- differential: what follows is written by `python -m tests.differential.wanted` -->"
_END = "<!-- differential: end -->"


def document() -> str:
    """docs/differences.md with the lists in it."""
    before, _, rest = DOCUMENT.read_text().partition(_BEGIN)
    after = rest.partition(_END)[2]
    return f"{before}{_BEGIN}\n\n{_lists()}\n{_END}{after}"


def _lists() -> str:
    parts = ["## Meant to differ\n", *map(_line, WANTED)]
    if not WANTED:
        parts.append("Nothing that these programs can see.")
    parts += ["\n## Differs from run to run, on stock Celery as well\n", *map(_line, CHANCE)]
    return "\n".join(parts) + "\n"


def _line(one: Wanted) -> str:
    where = ", ".join((*one.pools, *(f"`{launcher} worker`" for launcher in one.launchers)))
    return f"- {one.reason}{f' ({where})' if where else ''}."


if __name__ == "__main__":
    DOCUMENT.write_text(document())
