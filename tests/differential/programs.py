"""Random programs: JSON that ``producer`` and ``project`` play."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

Program = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Abilities:
    """What programs for a pool may ask for, because stock Celery can do it there."""

    limits: bool
    terminate: bool
    sleeps: bool
    coroutines: bool

    @classmethod
    def of(cls, pool: str) -> Abilities:
        processes = pool in ("prefork", "asyncio")
        return cls(processes, processes, pool != "solo", coroutines=True)


_TASKS = (
    "bound", "plain", "typed", "auto_soon", "once", "ignored", "ignored_errors", "tracked", "early",
    "late", "late_errors", "rated", "pickled", "yaml", "zipped", "loose", "hooked", "counted",
    "named", "expected", "expiring", "first", "unheard",
)  # fmt: skip
_COROUTINES = ("co", "co_hooked")

_text = st.one_of(
    st.sampled_from(
        [
            "",
            "x",
            "caf\udce9.txt",
            "\u0000",
            "日本",
            "🦆",
            "a'b\"c",
            "\\",
            "<b>",
            "\u2028",
            "%s",
            "{}",
        ]
    ),
    st.text(max_size=8),
)
_tagged = st.sampled_from(
    [
        {"$": "bytes", "v": "00ff"},
        {"$": "bytes", "v": "616263"},
        {"$": "datetime", "v": "2026-02-03T04:05:06.000007"},
        {"$": "datetime", "v": "2026-02-03T04:05:06+05:00"},
        {"$": "date", "v": "2026-02-03"},
        {"$": "decimal", "v": "1.10"},
        {"$": "uuid", "v": "0b6f5d6e-9d5b-4b1e-8f3a-3f6a4b8e1a11"},
        {"$": "tuple", "v": [1, "two"]},
        {"$": "dict", "v": [[1, "one"], ["two", 2]]},
        {"$": "deep", "v": 30},
        {"$": "text", "v": 3000},
        {"$": "text", "v": 200_000},
        {"$": "seconds", "v": 1.5},
        {"$": "set", "v": [1]},
        {"$": "opaque", "v": 0},
        {"$": "lambda", "v": 0},
    ]
)
_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.sampled_from([2**31, -(2**63), 2**64, 2**70, 10**40]),
    st.sampled_from([0.0, -0.0, 1.5, 1e300, float("nan"), float("inf"), 0.1]),
    _text,
)
_odd = st.one_of(
    _scalars, _tagged, st.lists(_scalars, max_size=3), st.dictionaries(_text, _scalars, max_size=3)
)
#: Mostly harmless: a program that fails at its first call shows nothing else.
_value = st.one_of(_scalars, _scalars, _odd)
_safe = st.one_of(st.integers(0, 99), st.sampled_from(["x", "日本", None, True]))
_wait = st.sampled_from([0.3, 0.5, 0.8])

_error = st.one_of(
    st.tuples(st.just("ValueError"), st.lists(_safe, max_size=2)),
    st.tuples(st.just("KeyError"), st.just(["k"])),
    st.tuples(st.just("OwnError"), st.just([7, "own"])),
    st.tuples(st.just("Unpicklable"), st.just([1, "two"])),
    st.tuples(st.just("RuntimeError"), st.lists(_text, max_size=1)),
    st.tuples(st.just("ValueError"), st.lists(_odd, max_size=1)),
    st.tuples(st.just("OSError"), st.just([2, "no such file", "name"])),
    st.tuples(st.just("UnicodeError"), st.just(["caf\udce9"])),
)


class _Names:
    """Names of nodes, new in each program."""

    def __init__(self) -> None:
        self.count = 0

    def new(self) -> str:
        self.count += 1
        return f"n{self.count}"


@st.composite
def _script(draw: Any, names: _Names, can: Abilities, depth: int, final: bool = True) -> list[Any]:
    """What a body does."""
    words: list[Any] = []
    for kind in draw(st.lists(st.sampled_from(_words(can, depth)), max_size=2)):
        if kind == "state":
            state = draw(st.sampled_from(["PROGRESS", "STARTED", "SUCCESS", "FAILURE", "OWN"]))
            meta = {"exc_type": "ValueError", "exc_message": ["m"], "exc_module": "builtins"}
            words.append(["state", state, meta if state == "FAILURE" else {"done": draw(_safe)}])
        elif kind in ("state_of", "store_of"):
            words.append(
                [kind, names.new(), draw(st.sampled_from(["SUCCESS", "MINE"])), draw(_safe)]
            )
        elif kind == "done_of":
            words.append([kind, names.new(), draw(_safe)])
        elif kind == "sleep":
            words.append(["sleep", draw(st.sampled_from([0.02, 0.1]))])
        elif kind == "call":
            words.append(["call", draw(call(names, can, depth + 1))])
        elif kind == "canvas":
            words.append(["call", draw(canvas(names, can, depth + 1))])
        elif kind == "forward":
            one = draw(call(names, can, depth + 1))
            one["how"] = "apply_async"
            words.append(["forward", one])
        elif kind == "event":
            words.append(["event", "task-progress", {"percent": draw(_safe)}])
        else:
            words.append([kind])
    if not final:
        return words
    end = draw(st.sampled_from([
        "value", "value", "value", "nothing", "raise", "raise", "raise_until", "retry", "retry",
        "ignore", "reject", "requeue", "replace", "exit",
    ]))  # fmt: skip
    if end == "value":
        words.append(["ret", draw(_value)])
    elif end == "raise":
        words.append(["raise", *draw(_error)])
    elif end == "raise_until":
        error = draw(st.sampled_from([["KeyError", ["k"]], ["OSError", ["later"]]]))
        words.append(["raise_until", draw(st.integers(1, 3)), *error])
    elif end == "retry":
        how: dict[str, Any] = {}
        if draw(st.booleans()) or draw(st.booleans()):
            how["countdown"] = draw(st.sampled_from([0, 0.3, 0.6]))
        else:
            how["countdown"] = 0.3
        for key, choices in (
            ("max_retries", st.sampled_from([1, 2])),
            ("exc", st.sampled_from(["ValueError", "KeyError"])),
            ("priority", st.just(3)),
            ("headers", st.just({"retried": "yes"})),
            ("throw", st.just(False)),
            ("kwargs", st.none()),
            ("expires", st.just(20)),
        ):
            if key != "kwargs" and draw(st.integers(0, 5)) == 0:
                how[key] = draw(choices)
        words.append(["retry", draw(st.integers(1, 4)), how])
    elif end == "replace":
        if depth < 2:
            words.append(["replace", draw(canvas(names, can, depth + 1))])
    elif end in ("ignore", "reject", "requeue"):
        if draw(st.booleans()):
            words.append([end])
    elif end == "exit" and can.limits and draw(st.integers(0, 3)) == 0:
        words.append(["raise", "SystemExit", [1]])
    return words


def _words(can: Abilities, depth: int) -> list[str]:
    words = ["state", "state_of", "store_of", "done_of", "peek", "event", "sub", "state_read"]
    if can.sleeps:
        words.append("sleep")
    if depth < 2:
        words += ["call", "canvas", "forward"]
    return words


@st.composite
def call(draw: Any, names: _Names, can: Abilities, depth: int = 0) -> dict[str, Any]:
    """A call of one task, with a script and options."""
    tasks = _TASKS + _COROUTINES * 3 if can.coroutines else _TASKS
    limited = ("limited", "co_limited") if can.limits else ()
    slow = ("auto", "co_auto")
    task = draw(st.sampled_from(tasks + limited + slow))
    made: dict[str, Any] = {"n": names.new(), "task": task}
    if values := draw(st.lists(_value, max_size=2)):
        made["v"] = values
    if script := draw(_script(names, can, depth)):
        made["s"] = script
    if task in limited and draw(st.booleans()):
        made["s"] = [["nap" if draw(st.booleans()) else "sleep", 2.0]]
    if task in slow and draw(st.booleans()):
        made["s"] = [["raise_until", draw(st.integers(1, 3)), "KeyError", ["k"]]]
    if task == "typed" and len(made.get("v", [])) == 0 and draw(st.integers(0, 3)):
        made["v"] = [1]
    if depth == 0:
        made["how"] = draw(
            st.sampled_from([
                "delay", "delay", "apply_async", "apply_async", "apply_async", "send_task",
                "signature", "signature_call", "producer", "connection", "apply", "call",
            ])
        )  # fmt: skip
    if draw(st.booleans()) and (options := draw(_options(names, can, depth))):
        made["o"] = options
    return made


@st.composite
def _options(draw: Any, names: _Names, can: Abilities, depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    choices = [
        "countdown", "eta", "expires", "expired", "priority", "headers", "own_id", "shadow",
        "reply_to", "serializer", "compression", "ignore_result", "retry", "argsrepr",
        "stamped", "own_headers", "times", "root", "delivery", "correlation",
    ]  # fmt: skip
    if depth < 2:
        choices += ["link", "link_error", "both", "errback"]
    if can.limits:
        choices += ["limits"]
    for kind in draw(st.lists(st.sampled_from(choices), max_size=3, unique=True)):
        if kind == "countdown":
            found["countdown"] = draw(st.sampled_from([0.3, 0.5, 0.8, 0, -1]))
        elif kind == "eta" and "countdown" not in found:
            hours = draw(st.sampled_from([0, 5, -7]))
            found["eta_zone"] = {"hours": hours, "seconds": draw(_wait)}
        elif kind == "expires":
            found["expires"] = draw(st.sampled_from([30, 60.5]))
        elif kind == "times":
            found["expires_at"] = draw(st.sampled_from([20, -1]))
        elif kind == "expired":
            found["expires"] = draw(st.sampled_from([0.1, -5]))
            if found["expires"] == 0.1:
                found["countdown"] = 0.5
                found.pop("eta_zone", None)
        elif kind == "priority":
            found["priority"] = draw(st.sampled_from([0, 3, 5, 9, None]))
        elif kind == "headers":
            found["headers"] = draw(
                st.dictionaries(
                    st.sampled_from(["trace", "X-Id", "a b", "日本"]), _safe, max_size=2
                )
            )
        elif kind == "own_headers":
            # Names that transports and monitors use, coming from outside.
            found["headers"] = draw(
                st.sampled_from([
                    {"x-delay": 300}, {"x-delivery-count": 7}, {"x-deaths": [["w", "killed"]]},
                    {"x-delay": "soon", "x-last-chance": True}, {"redelivered": True},
                    {"timestamp": 1}, {"traceparent": "00-0-0-01", "baggage": "a=b"},
                ])
            )  # fmt: skip
        elif kind == "own_id":
            found["own_id"] = True
        elif kind == "shadow":
            found["shadow"] = draw(st.sampled_from(["another.name", ""]))
        elif kind == "reply_to":
            found["reply_to"] = "someone"
        elif kind == "serializer":
            found["serializer"] = draw(st.sampled_from(["json", "pickle", "yaml", "nonsense"]))
        elif kind == "compression":
            found["compression"] = draw(st.sampled_from(["gzip", "bzip2", None]))
        elif kind == "ignore_result":
            found["ignore_result"] = draw(st.booleans())
        elif kind == "retry":
            found["retry"] = draw(st.booleans())
        elif kind == "argsrepr":
            found["argsrepr"] = "hidden"
        elif kind == "stamped":
            found["stamped_headers"] = ["mark"]
            found["mark"] = draw(st.sampled_from(["value", ["one", "two"]]))
        elif kind == "root":
            found[draw(st.sampled_from(["root_id", "parent_id"]))] = "given-by-hand"
        elif kind == "delivery":
            found["delivery_mode"] = draw(st.sampled_from([1, 2]))
        elif kind == "correlation":
            found["add_to_parent"] = draw(st.booleans())
        elif kind == "limits":
            found.update(draw(st.sampled_from([
                {"time_limit": 5}, {"soft_time_limit": 4.5},
                {"time_limit": 6, "soft_time_limit": 3},
            ])))  # fmt: skip
        elif kind in ("link", "link_error", "both"):
            for key in ("link", "link_error") if kind == "both" else (kind,):
                found[key] = [_quiet(draw(_leaf(names, can, 2)))]
                found["link_alone"] = draw(st.booleans())
        elif kind == "errback":
            task = draw(st.sampled_from(["errback", "errback_id"]))
            found["link_error"] = [{"n": names.new(), "task": task}]
    return found


def _quiet(spec: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in spec.items() if key != "how"}


@st.composite
def _leaf(draw: Any, names: _Names, can: Abilities, depth: int) -> dict[str, Any]:
    """A signature within a canvas: mostly plain, so that the canvas is what is looked at."""
    if depth < 2 and draw(st.integers(0, 3)) == 0:
        return _quiet(draw(call(names, can, depth)))
    made: dict[str, Any] = {
        "n": names.new(),
        "task": draw(st.sampled_from(["bound", "co", "hooked", "ignored", "auto_soon", "bound"])),
        "v": [draw(_safe)],
    }
    end = draw(st.integers(0, 9))
    if end == 0:
        made["s"] = [["raise", "ValueError", ["part"]]]
    elif end == 1:
        made["s"] = [["retry", 1, {"countdown": 0.3}]]
    elif end == 2:
        made["s"] = [["ret", draw(_safe)]]
    if draw(st.integers(0, 4)) == 0:
        made["immutable"] = True
    if draw(st.integers(0, 5)) == 0:
        made["o"] = draw(st.sampled_from([
            {"countdown": 0.3}, {"priority": 3}, {"headers": {"part": "x"}}, {"own_id": True},
            {"expires": 30}, {"shadow": "part"},
        ]))  # fmt: skip
    return made


@st.composite
def canvas(draw: Any, names: _Names, can: Abilities, depth: int = 0) -> dict[str, Any]:
    """A chain, group, chord, map … of some depth."""
    kinds = ["chain", "group", "chord", "pipe", "map", "starmap", "chunks", "sig"]
    kind = draw(st.sampled_from(kinds))

    def part() -> Any:
        if depth < 2 and draw(st.integers(0, 3)) == 0:
            return draw(canvas(names, can, depth + 1))
        return draw(_leaf(names, can, depth + 1))

    made: dict[str, Any]
    if kind == "sig":
        made = draw(_leaf(names, can, depth + 1))
        return made
    if kind in ("map", "starmap", "chunks"):
        items = draw(st.lists(_safe, min_size=1, max_size=4))
        return {"c": kind, "n": names.new(), "items": items}
    made = {"c": kind, "t": [part() for _ in range(draw(st.integers(1, 3)))]}
    if kind == "chord":
        made["body"] = draw(_leaf(names, can, depth + 1))
    if draw(st.integers(0, 3)) == 0:
        made["on_error"] = {
            "n": names.new(),
            "task": draw(st.sampled_from(["errback", "errback_id"])),
        }
    if draw(st.integers(0, 3)) == 0:
        made["stamp"] = {"mark": draw(st.sampled_from(["s", "t"]))}
    if draw(st.integers(0, 4)) == 0:
        made["o"] = draw(st.sampled_from([
            {"countdown": 0.3}, {"headers": {"whole": 1}}, {"priority": 6}, {"expires": 30},
            {"own_id": True, "n": "x"},
        ]))  # fmt: skip
        made["o"].pop("n", None)
        made["o"].pop("own_id", None)
    return made


@st.composite
def _raw(draw: Any, names: _Names) -> dict[str, Any]:
    made: dict[str, Any] = {
        "n": names.new(),
        "task": draw(st.sampled_from(["bound", "hooked", "co", "tracked", "nowhere"])),
        "how": draw(st.sampled_from(["raw1", "raw2", "raw_null", "raw_bare", "raw_odd"])),
        "v": draw(st.lists(_safe, max_size=2)),
    }
    if made["how"] == "raw_odd":
        made["odd"] = draw(st.sampled_from([
            {"retries": None}, {"timelimit": None}, {"retries": 2}, {"lang": None},
            {"ignore_result": None}, {"argsrepr": None}, {"origin": 7}, {"x-delivery-count": 9},
            {"x-delay": 200}, {"stamps": {}}, {"stamped_headers": None}, {"expires": "nonsense"},
            {"eta": "nonsense"}, {"root_id": None, "parent_id": None}, {"extra": {"deep": [1]}},
            {"x-deaths": ["me"]}, {"group": "g"}, {"expires": "2020-01-01T00:00:00"},
            {"eta": "2020-01-01T00:00:00"}, {"replaced_task_nesting": 3}, {"shadow": "x"},
        ]))  # fmt: skip
    if draw(st.integers(0, 4)) == 0:
        made["props"] = draw(st.sampled_from([
            {"priority": 7}, {"reply_to": "me"}, {"expiration": "5000"}, {"user_id": "x"},
        ]))  # fmt: skip
    return made


@st.composite
def program(draw: Any, can: Abilities) -> Program:
    """Steps of the producers."""
    names = _Names()
    steps: Program = []
    for kind in draw(
        st.lists(
            st.sampled_from([
                "call", "call", "call", "call", "canvas", "canvas", "canvas", "raw", "many",
                "threads", "fork", "revoke", "terminate", "get", "repeat", "rate", "stamps",
                "store",
            ]),
            min_size=1, max_size=3,
        )
    ):  # fmt: skip
        if kind == "call":
            steps.append({"do": "call", "call": draw(call(names, can))})
        elif kind == "canvas":
            made = draw(canvas(names, can))
            steps.append({"do": "call", "call": {**made, "how": "signature"}})
        elif kind == "raw":
            steps.append({"do": "call", "call": draw(_raw(names))})
        elif kind == "repeat":
            # Templates show themselves at the second call only.
            one = draw(call(names, can))
            steps.append({"do": "call", "call": one, "times": draw(st.integers(2, 3))})
        elif kind == "many":
            one = draw(call(names, can))
            steps.append(
                {
                    "do": "many",
                    "call": one,
                    "values": draw(st.lists(_scalars, min_size=1, max_size=3)),
                }
            )
        elif kind == "threads":
            inner = [{"do": "call", "call": draw(call(names, can))} for _ in range(2)]
            steps.append({"do": "threads", "steps": inner * draw(st.integers(1, 2))})
        elif kind == "fork":
            one = {"n": names.new(), "task": "bound", "v": [draw(_safe)], "how": "delay"}
            inner = [{"do": "call", "call": one}, {"do": "get", "n": one["n"]}]
            steps.append({"do": "call", "call": {**one, "n": names.new()}})
            steps.append({"do": "fork", "steps": inner})
        elif kind == "get":
            one = draw(call(names, can))
            one["s"] = [["ret", draw(_value)]]
            one.pop("o", None)
            one["task"] = draw(st.sampled_from(["bound", "co", "typed", "yaml", "pickled"]))
            one["how"] = draw(st.sampled_from(["delay", "apply_async", "send_task"]))
            steps += [{"do": "call", "call": one}, {"do": "get", "n": one["n"]}]
        elif kind == "revoke":
            one = draw(call(names, can))
            one["how"] = "apply_async"
            one["o"] = {"countdown": 1.5}
            steps += [{"do": "call", "call": one}, {"do": "revoke", "n": one["n"]}]
        elif kind == "stamps":
            one = {"n": names.new(), "task": "bound", "stamp": {"mark": "s"}, "how": "signature"}
            one["o"] = {"countdown": 1.5}
            steps += [
                {"do": "call", "call": one},
                {"do": "revoke", "n": one["n"], "headers": {"mark": "s"}},
            ]
        elif kind == "terminate" and can.terminate:
            one = {
                "n": names.new(),
                "task": draw(st.sampled_from(["bound", "co", "late", "hooked"])),
            }
            one["s"] = [["sleep", 4]]
            steps += [
                {"do": "call", "call": one},
                {"do": "wait", "n": one["n"]},
                {"do": "revoke", "n": one["n"], "o": {"terminate": True}},
            ]
        elif kind == "rate":
            rate = draw(st.sampled_from(["200/s", "nonsense", "0", "12000/m"]))
            task = draw(st.sampled_from(["rated", "nowhere"]))
            steps.append(
                {"do": "rate", "task": task, "rate": rate if task == "nowhere" else "200/s"}
            )
        elif kind == "store":
            steps.append(
                {"do": "store", "n": names.new(), "state": "SUCCESS", "value": draw(_value)}
            )
    return steps


def generate(count: int, start: int, can: Abilities) -> list[Program]:
    """``count`` programs; the same for the same ``start``."""
    found: list[Program] = []

    @seed(start)
    @settings(
        max_examples=count,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(program(can))
    def collect(one: Program) -> None:
        found.append(one)

    while len(found) < count:
        collect()
        start += 1
    return found[:count]
