"""Plays programs on several sides at once and finds where they part."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from cloche.testing import BrokerProcess
from tests.differential.programs import Program
from tests.differential.side import REFERENCE, Setting, Side, leftovers
from tests.differential.story import STREAMS, Difference, Story, differences
from tests.differential.wanted import Wanted, explanation

#: Seconds without anything new after which a program that waits for nothing is over.
QUIET = 0.8
#: Seconds without anything new, of any program, after which one that waits is stuck.
STUCK = 4.0
#: How many times longer the last try of a suspect takes both: a loaded machine makes stock late.
PATIENCE = 4
_TOLD = {t for stream, types in STREAMS.items() if stream != "own events" for t in types}
_TERMINAL = {"task-succeeded", "task-failed", "task-revoked", "task-rejected"}


#: Seconds after a worker has ended within which those of other sides end for the same reason.
ALIKE = 5.0


class _WorkerEndedError(Exception):
    """The workers of some sides have."""

    def __init__(self, sides: list[Side]) -> None:
        super().__init__(", ".join(side.name for side in sides))
        self.sides = sides


def _life(ended: bool) -> str:
    return "ended" if ended else "runs"


@dataclass(slots=True)
class Verdict:
    """A program and where a side parts from stock."""

    program: Program
    launcher: str
    unexplained: list[Difference]
    explained: list[tuple[Difference, Wanted]]
    stories: tuple[Any, Any] = (None, None)

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset(one.kind for one in self.unexplained)


@dataclass(slots=True)
class _Watched:
    """A program that runs on a side."""

    side: Side
    program: str
    steps: Program
    read: int = 0
    records: list[dict[str, Any]] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)
    finishing: bool = False
    hung: bool = False

    def look(self, texts: Sequence[str]) -> None:
        if texts:
            self.records += [json.loads(text) for text in texts]
            self.read += len(texts)
            self.since = self.side.busy = time.monotonic()
        self.since = max(self.since, self.side.active.get(self.program, 0))

    def has(self, kind: str) -> bool:
        return any(record["k"] == kind for record in self.records)

    def waiting(self) -> bool:
        """Whether a task has been sent that has not ended."""
        sent = {r["id"] for r in self.records if r["k"] in ("sent", "body")}
        sent |= {uuid for uuid, owner in list(self.side.owners.items()) if owner[0] == self.program}
        for task_id in sent:
            events = [e for e in self.side.events.get(task_id, ()) if e["type"] in _TOLD]
            last = None
            if events:
                last = events[-1]["type"]
                if events[-1].get("requeue"):
                    return True
            if last in _TERMINAL:
                continue
            ends = [r for r in self.records if r["k"] == "end" and r["id"] == task_id]
            if ends and ends[-1]["how"].endswith(" Ignore"):
                continue  # replaced, too; nothing tells of it
            if last is None and ends and not ends[-1]["how"].startswith("retry"):
                continue  # a task without events, or called where it is defined
            return True
        return False


class Bench:
    """Stock and ours, running, for one pool and profile."""

    def __init__(self, pool: str, profile: str, launchers: Sequence[str]) -> None:
        self.pool, self.profile = pool, profile
        reference = Setting("stock", REFERENCE.get(pool, pool), profile)
        self.settings = [reference, *(Setting(one, pool, profile) for one in launchers)]
        #: How many times longer than usual nothing new has to come.
        self.patience = 1
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Bench:
        with self._stack as stack:
            self.directory = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="cloche-differential-"))
            )
            self._ledger = stack.enter_context(BrokerProcess())
            os.environ["DIFFERENTIAL_LEDGER"] = self._ledger.url
            self.ledger = redis.Redis.from_url(
                self._ledger.url, decode_responses=True, socket_timeout=None
            )
            stack.callback(self.ledger.close)
            self._sides = stack.enter_context(contextlib.ExitStack())
            self._begin_anew()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _begin_anew(self) -> None:
        """Start all sides, after those that run have ended."""
        self._sides.close()
        self.ledger.flushall()
        for log in self.directory.glob("*.log"):
            log.unlink()
        self.sides = [
            self._sides.enter_context(Side(one, self._ledger.url, self.directory, coroutines=True))
            for one in self.settings
        ]
        for side in self.sides:
            side.wait_ready()

    def compare(
        self, programs: Sequence[Program], *, at_once: int = 60, launcher: str | None = None
    ) -> Iterator[Verdict]:
        """Every program on every side (or on stock and one of ours); a verdict for each of ours."""
        for start in range(0, len(programs), at_once):
            yield from self._compare(programs[start : start + at_once], launcher)

    def _compare(self, batch: Sequence[Program], launcher: str | None) -> Iterator[Verdict]:
        stock, *others = self.sides
        ours = [s for s in others if launcher in (None, s.setting.launcher)]
        try:
            told = self._play(batch, [stock, *ours])
        except _WorkerEndedError as ended:
            self._begin_anew()
            middle = len(batch) // 2
            if middle:  # which program did it?
                yield from self._compare(batch[:middle], launcher)
                yield from self._compare(batch[middle:], launcher)
                return
            # Nothing else is known of it.
            told = {(s.name, 0): {"worker": _life(s in ended.sides)} for s in (stock, *ours)}
        for index, program in enumerate(batch):
            for side in ours:
                pair = told[stock.name, index], told[side.name, index]
                yield self._judge(program, side.setting.launcher, *pair)

    def _judge(self, program: Program, launcher: str, stock: Any, ours: Any) -> Verdict:
        verdict = Verdict(program, launcher, [], [], (stock, ours))
        for difference in differences(stock, ours):
            wanted = explanation(difference, program, launcher, self.pool)
            if wanted:
                verdict.explained.append((difference, wanted))
            else:
                verdict.unexplained.append(difference)
        return verdict

    def _play(self, batch: Sequence[Program], sides: Sequence[Side]) -> dict[tuple[str, int], Any]:
        running: dict[tuple[str, int], _Watched] = {}
        for index, steps in enumerate(batch):
            for side in sides:
                program = "x" + secrets.token_hex(5)
                side.play(program, steps)
                running[side.name, index] = _Watched(side, program, steps)
        left = dict(running)
        while left:
            time.sleep(0.05)
            if any(map(Side.ended, sides)):
                time.sleep(ALIKE)
                raise _WorkerEndedError([side for side in sides if side.ended()])
            pipeline = self.ledger.pipeline(transaction=False)
            for one in left.values():
                pipeline.lrange(f"seen:{one.program}", one.read, -1)
            for (key, one), texts in zip(list(left.items()), pipeline.execute(), strict=True):
                one.look(texts)
                if self._over(one):
                    del left[key]
        return self._tell(running)

    def _over(self, one: _Watched) -> bool:
        quiet = time.monotonic() - one.since
        stuck_after = STUCK * self.patience
        if one.finishing:
            return one.has("finished") or quiet > 3 * stuck_after
        if quiet < QUIET * self.patience:
            return False
        played = one.has("played")
        # A step may wait for a result itself: it says so when it gives up.
        idle = time.monotonic() - max(one.since, one.side.busy)
        stuck = idle > (stuck_after if played else 4 * stuck_after)
        if not stuck and (not played or one.waiting()):
            return False
        one.hung = stuck
        one.finishing = True
        one.side.play(one.program, one.steps, finish=True)
        one.since = time.monotonic()
        return False

    def _tell(self, running: dict[tuple[str, int], _Watched]) -> dict[tuple[str, int], Any]:
        logs: dict[str, list[str]] = defaultdict(list)
        for text in self.ledger.lrange("logged", 0, -1):
            task_id, _, rest = str(text).partition("\n")
            logs[task_id].append(rest.replace("\n", " "))
        self.ledger.delete("logged")
        left = {side.name: leftovers(side) for side in self.sides}
        told = {}
        for (name, index), one in running.items():
            story = Story(one.program)
            story._name(one.records, dict(one.side.owners))
            mine = {
                kind: [text for text in texts if one.program in text]
                for kind, texts in left[name].items()
            }
            told[name, index] = story.tell(
                one.records, one.side.events, dict(one.side.owners),
                self._metas(one.side, story.labels), logs, mine, one.hung,
            )  # fmt: skip
            self.ledger.delete(f"seen:{one.program}")
        for side in self.sides:
            side.events.clear()
            side.owners.clear()
            side.active.clear()
        return told

    def _metas(self, side: Side, ids: Sequence[str] | dict[str, str]) -> dict[str, Any]:
        metas: dict[str, Any] = {}
        with side.server.client() as client:
            for task_id in ids:
                text = client.get(f"celery-task-meta-{task_id}")
                if text is not None:
                    metas[task_id] = {
                        "expires": int(client.ttl(f"celery-task-meta-{task_id}")) > 3000,
                        **json.loads(str(text)),
                    }
        return metas


def repeated(bench: Bench, batch: Sequence[Verdict]) -> list[frozenset[str]]:
    """The kinds of each that differ whenever it runs, with little beside it and in no haste."""
    kinds = [suspect.kinds for suspect in batch]
    for patience in (1, PATIENCE):
        bench.patience = patience
        found = list(bench.compare([suspect.program for suspect in batch]))
        bench.patience = 1
        for index, suspect in enumerate(batch):
            kinds[index] &= next(
                verdict.kinds
                for verdict in found
                if verdict.program is suspect.program and verdict.launcher == suspect.launcher
            )
    return kinds


def confirmed(
    bench: Bench, suspects: Sequence[Verdict]
) -> list[tuple[str, Program, list[Difference]]]:
    """Launcher, program and differences of the suspects that differ again and again."""
    return [
        (one.launcher, one.program, [d for d in one.unexplained if d.kind in kinds])
        for one, kinds in zip(suspects, repeated(bench, suspects), strict=True)
        if kinds
    ]
