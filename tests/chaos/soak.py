"""The soak: numbered tasks on all pools for a while, under faults, and every number accounted for.

``python -m tests.chaos.soak --minutes 30 --tasks 1000000 --report soak.md``; the exit code says
whether it passed. Times are Unix seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

import psutil
import redis

from cloche.broker.keys import Keys
from cloche.testing import BrokerProcess, wait_until
from tests.chaos.measure import ACK_WINDOW, resources
from tests.chaos.soak_app import LEASE, POOLS, SHARED, answer
from tests.chaos.soak_publish import LONGER
from tests.integration.transport.harness import ROOT, Bench, Worker, connections

CONCURRENCY = {"asyncio": 100, "threads": 10, "prefork": 2, "solo": 1}
#: Seconds for the last tasks to run, and for what is left to go.
PATIENCE = 180
#: Seconds after an outage in which workers come back, and what ran in it is settled.
AFTER = 10
#: Seconds below which growth is not judged: caches fill first.
SETTLED = 600


class Sent(NamedTuple):
    """An acknowledged publish. ``after``: so many of the numbers before it run first."""

    id: str
    began: float
    ended: float
    after: int


class Run(NamedTuple):
    """A line of the ledger."""

    word: str
    worker: str
    pid: int
    at: float
    id: str


@dataclass(frozen=True, slots=True)
class Fault:
    """What was struck (a worker, a pool process of it, or the broker: ""), when, and which tasks
    the server knew in its hands."""

    kind: str
    began: float
    ended: float
    worker: str = ""
    pid: int = 0
    held: frozenset[str] = frozenset()


class Tail:
    """New lines of the files in a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._places: dict[str, int] = {}
        directory.mkdir()

    def lines(self) -> Iterator[tuple[str, list[str]]]:
        """(file name without the process id, words)."""
        for entry in os.scandir(self._directory):
            place = self._places.get(entry.name, 0)
            if entry.stat().st_size == place:
                continue
            with open(entry.path, "rb") as file:
                file.seek(place)
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._places[entry.name] = place + len(whole)
            for line in whole.decode().splitlines():
                yield entry.name.rpartition(".")[0], line.split()


class Accounts:
    """Everything published, run and found in results, by number."""

    def __init__(self, directory: Path, client: redis.Redis) -> None:
        self.ledger, self.published = Tail(directory / "ledger"), Tail(directory / "published")
        self._client = client
        self.sent: dict[int, Sent] = {}
        self.raised: dict[int, tuple[float, float]] = {}
        self.runs: defaultdict[int, list[Run]] = defaultdict(list)
        self.kinds: Counter[str] = Counter()
        self.pools: Counter[str] = Counter()
        self.wrong: list[str] = []
        #: Numbers whose result is an error, and that error.
        self.failed: dict[int, str] = {}
        self.late = self.got = self.checked = self.untold = 0
        self._unchecked: deque[tuple[int, float]] = deque()

    def read(self) -> None:
        """What was written since."""
        for _, words in self.published.lines():
            self._note(words)
        for worker, (word, number, pid, at, run) in self.ledger.lines():
            if word == "wrong":
                self.wrong.append(f"{number} was given another's result, in {run}")
                continue
            self.runs[int(number)].append(Run(word, worker, int(pid), float(at), run))
            self.pools[worker.partition("-")[0]] += 1

    def _note(self, words: list[str]) -> None:
        number = int(words[1])
        match words[0]:
            case "sent":
                _, _, identity, began, ended, kind, after = words
                self.sent[number] = Sent(identity, float(began), float(ended), int(after))
                self.kinds[kind] += 1
                self._unchecked.append((number, float(ended) + 5))
            case "raised":
                self.raised[number] = (float(words[2]), float(words[3]))
            case "untold":
                self.untold += 1
            case "late":
                self.late += 1
            case "got":
                self.got += 1
                if int(words[2]) != answer(number):
                    self.wrong.append(f"get() of {number} gave {words[2]}")

    def check_results(self, *, now: bool = False) -> int:
        """Compare stored results with what they must be; how many are not there yet."""
        due: list[int] = []
        while self._unchecked and (now or self._unchecked[0][1] < time.time()) and len(due) < 1000:
            due.append(self._unchecked.popleft()[0])
        try:
            found = (
                self._client.mget([f"celery-task-meta-{self.sent[n].id}" for n in due])
                if due
                else []
            )
        except redis.RedisError:
            found = [None] * len(due)
        for number, text in zip(due, found, strict=True):
            meta = json.loads(text) if text else {"status": "PENDING"}
            if meta["status"] in ("PENDING", "RETRY", "STARTED"):
                self._unchecked.append((number, time.time() + 5))
                continue
            self.checked += 1
            if meta["status"] != "SUCCESS":
                self.failed[number] = str(text)
            elif meta["task_id"] != self.sent[number].id or meta["result"] != answer(number):
                self.wrong.append(f"the result of {number} is {text!r}")
        return len(self._unchecked)

    def lost(self) -> list[int]:
        """Numbers whose publish was acknowledged and that never ran."""
        return [n for n in self.sent if not any(run.word == "ran" for run in self.runs.get(n, ()))]

    def ids_twice(self) -> list[str]:
        """Ids of more than one number, or that are not their number's."""
        owners: dict[str, int] = {}
        found = []
        for number, sent in self.sent.items():
            if owners.setdefault(sent.id, number) != number:
                found.append(f"{sent.id}: {number} and {owners[sent.id]}")
        for number, runs in self.runs.items():
            for run in runs:
                other = owners.setdefault(run.id, number)
                if other != number or (number in self.sent and self.sent[number].id != run.id):
                    found.append(f"{run.id}: ran as {number}, was {other}")
        return found


class Judge:
    """Says of each repeat which fault allows it."""

    def __init__(self, accounts: Accounts, faults: list[Fault]) -> None:
        self._accounts = accounts
        self._struck = [fault for fault in faults if fault.held]
        self._children = [fault for fault in faults if fault.pid]
        self._outages = [f for f in faults if f.kind.startswith(("broker", "CLIENT KILL"))]
        self._repeated: set[int] = set()

    def repeats(self) -> tuple[Counter[str], list[str]]:
        """How many each kind of fault allows; those that nothing allows."""
        allowed: Counter[str] = Counter()
        refused = []
        for number, runs in sorted(self._accounts.runs.items()):
            for word in ("retried", "ran"):
                same = sorted((run for run in runs if run.word == word), key=lambda run: run.at)
                for before, after in pairwise(same):
                    reason = self._reason(number, before, after)
                    self._repeated.add(number)
                    if reason:
                        allowed[reason] += 1
                    else:
                        refused.append(f"{number}: {before}, then {after}")
        return allowed, refused

    def _reason(self, number: int, before: Run, after: Run) -> str | None:
        for fault in self._struck:
            ours = fault.worker in (before.worker, after.worker) and before.id in fault.held
            if ours and before.at <= fault.ended + AFTER and after.at >= fault.began:
                return fault.kind
        for fault in self._children:
            if before.pid == fault.pid and after.at >= fault.began:
                return fault.kind
        for fault in self._outages:
            if fault.kind.startswith("broker") and _within(before.at, before.at, fault):
                return fault.kind
        for fault in self._outages:
            if any(
                _within(began, ended, fault) for began, ended in self._published(number, before)
            ):
                return "publish cut before its reply"
        if self._repeated & set(self._causes(number)) or (
            before.word == "ran" and number in self._repeated
        ):
            return "the task that published it was repeated"
        return None

    def _causes(self, number: int) -> range:
        sent = self._accounts.sent.get(number)
        return range(number - (sent.after if sent else 3), number)

    def _published(self, number: int, run: Run) -> Iterator[tuple[float, float]]:
        """When it was published: by the producer, or after the runs it follows."""
        runs = self._accounts.runs
        sent = self._accounts.sent.get(number)
        before = [one for one in runs[number] if one.word == "retried" and run.word == "ran"]
        before += [one for n in self._causes(number) for one in runs.get(n, ())]
        yield from ((one.at, one.at + 1) for one in before)
        if sent:
            yield sent.began, sent.ended
        if number in self._accounts.raised:
            yield self._accounts.raised[number]


def _within(began: float, ended: float, fault: Fault) -> bool:
    return ended >= fault.began - ACK_WINDOW - 0.75 and began <= fault.ended + AFTER


class SoakWorker(Worker):
    """``cloche worker`` on the queue of its pool and the shared one."""

    def __init__(self, bench: Bench, pool: str, name: str) -> None:
        self.pool, self.name = pool, name
        environ = {
            "CLOCHE_BROKER__URL": bench.broker.url,
            "CLOCHE_RUN_DIR": str(bench.directory / "run"),
            "SOAK_LEDGER": str(bench.directory / "ledger"),
            "SOAK_WORKER": name,
        }
        super().__init__(bench, pool, CONCURRENCY[pool], bench.url, {}, environ)
        self._client = bench.client

    def _words(self, pool: str, concurrency: int, name: str) -> list[str]:
        words = ["-m", "cloche", "worker", "-A", "tests.chaos.soak_app"]
        words += ["-P", pool, "-c", str(concurrency), "-Q", f"{pool},{SHARED}"]
        return [*words, "--name", self.name, "-l", "WARNING"]

    def consumers(self) -> list[str]:
        """Its names on the server: none before it is ready."""
        found = self._client.zrange(Keys().leases, 0, -1)
        return [str(one) for one in found if f":{self.process.pid}:" in str(one)]

    def _is_ready(self, times: int) -> bool:
        return bool(self.consumers())

    def held(self) -> frozenset[str]:
        """Ids of what it has in its hands, by the server."""
        found = set()
        for consumer in self.consumers():
            hash_ = self._client.hgetall(Keys().inflight(consumer))
            texts = (text for name, text in hash_.items() if "/" in str(name))
            found |= {str(json.loads(text)["headers"]["id"]) for text in texts}
        return frozenset(found)

    def kill(self) -> None:
        if self.alive:
            super().kill()


@dataclass
class Soak:
    """Workers, producer and faults of one soak."""

    bench: Bench
    tasks: int
    seconds: float
    interval: float
    pairs: bool
    random: random.Random
    say: Callable[[str], None]
    faults: list[Fault] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    workers: dict[str, SoakWorker] = field(default_factory=dict)
    samples: defaultdict[str, list[tuple[int, int]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def __post_init__(self) -> None:
        self.accounts = Accounts(self.bench.directory, self.bench.client)
        self._started = 0
        self._faults: list[Callable[[], None]] = []
        self._next_progress = self._next_sample = 0.0

    def run(self) -> None:
        """Until all numbers are published and run, or nothing more can be hoped for."""
        for pool in POOLS:
            for place in ("killed", "kept") if self.pairs else ("killed",):
                self._start(pool, place)
        for worker in self.workers.values():
            worker.wait_ready()
        self.began = time.time()
        producer = self._producer()
        try:
            self._strike_while(producer)
        finally:
            producer.terminate()
            producer.wait(timeout=30)
        if producer.returncode:
            self.problems.append(f"the producer ended with {producer.returncode}")
        for one in self.bench.directory.glob("producer.log"):
            if "Traceback" in (text := one.read_text()):
                self.say(text[-3000:])
        deadline = time.time() + PATIENCE
        while time.time() < deadline:
            self._tick()
            if not self.accounts.check_results(now=True) and not self.left():
                break
            time.sleep(0.5)
        self.took = time.time() - self.began

    def _strike_while(self, producer: subprocess.Popen[bytes]) -> None:
        strike = time.time() + self.interval
        while (
            producer.poll() is None and time.time() < self.began + self.seconds * LONGER + PATIENCE
        ):
            self._tick()
            if time.time() >= strike:
                self._strike()
                strike = time.time() + self.interval * self.random.uniform(0.6, 1.4)
            time.sleep(0.3)
        if producer.poll() is None:
            self.problems.append("the producer did not end")

    def _producer(self) -> subprocess.Popen[bytes]:
        environ = {
            **os.environ,
            "CLOCHE_BROKER__URL": self.bench.broker.url,
            "CLOCHE_RUN_DIR": str(self.bench.directory / "run"),
            "SOAK_PUBLISHED": str(self.bench.directory / "published"),
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "ignore",
        }
        words = [0, self.tasks, int(self.seconds * 0.95), self.random.randrange(10**6)]
        command = [sys.executable, "-m", "tests.chaos.soak_publish", *map(str, words)]
        with (self.bench.directory / "producer.log").open("wb") as log:
            return subprocess.Popen(
                command, cwd=ROOT, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def _start(self, pool: str, place: str) -> SoakWorker:
        self._started += 1
        found = SoakWorker(self.bench, pool, f"{pool}-{place}-{self._started}")
        self.workers[f"{pool}-{place}"] = found
        self.bench.workers.append(found)
        return found

    def _tick(self) -> None:
        self.accounts.read()
        self.accounts.check_results()
        now = time.time()
        for place, worker in self.workers.items():
            if not worker.alive:
                self.problems.append(f"{worker.name} ended by itself: {worker.log[-1000:]}")
                self._start(*place.split("-"))
        if now >= self._next_sample:
            self._next_sample = now + max(1.0, self.seconds / 180)
            for worker in self.workers.values():
                with contextlib.suppress(psutil.Error):
                    self.samples[worker.name].append(resources(worker))
        if now >= self._next_progress:
            self._next_progress = now + 30
            found = self.accounts
            self.say(
                f"{now - self.began:5.0f} s  published {len(found.sent):>8}  "
                f"raised {len(found.raised):>5}  ran {len(found.runs):>8}  "
                f"results checked {found.checked:>8}  wrong {len(found.wrong)}  "
                f"faults {len(self.faults)}"
            )

    # Faults

    def _strike(self) -> None:
        if not self._faults:
            self._faults = [
                self._kill, self._kill_child, self._stop_short, self._stop_long,
                self._freeze_broker, self._kill_broker, self._kill_connections, self._terminate,
            ]  # fmt: skip
            self.random.shuffle(self._faults)
        fault = self._faults.pop()
        try:
            fault()
        except (redis.RedisError, AssertionError, subprocess.TimeoutExpired, OSError) as error:
            self.problems.append(f"{fault.__name__}: {error!r}")

    def _add(self, kind: str, began: float, worker: str = "", **more: object) -> None:
        self.faults.append(Fault(kind, began, time.time(), worker, **more))  # type: ignore[arg-type]

    def _doomed(self) -> SoakWorker:
        return self.workers[f"{self.random.choice(POOLS)}-killed"]

    def _any(self) -> SoakWorker:
        return self.random.choice(list(self.workers.values()))

    def _renew(self, worker: SoakWorker) -> None:
        self._start(worker.pool, "killed").wait_ready()

    def _kill(self) -> None:
        worker, began = self._doomed(), time.time()
        worker.kill()
        self._add("kill -9 worker", began, worker.name, held=worker.held())
        self._renew(worker)

    def _terminate(self) -> None:
        worker, began = self._doomed(), time.time()
        code = worker.stop()
        if code:
            self.problems.append(
                f"{worker.name} ended with {code} after SIGTERM: {worker.log[-500:]}"
            )
        self._add("SIGTERM worker", began, worker.name)
        self._renew(worker)

    def _kill_child(self) -> None:
        worker = self.random.choice([w for w in self.workers.values() if w.pool == "prefork"])
        files = (self.bench.directory / "ledger").glob(f"{worker.name}.*")
        worked = {int(path.suffix[1:]) for path in files}
        children = psutil.Process(worker.process.pid).children()
        pids = [child.pid for child in children if child.pid in worked]
        if pids:
            began, pid = time.time(), self.random.choice(pids)
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(pid).kill()
            self._add("kill -9 pool process", began, worker.name, pid=pid)

    def _stop_short(self) -> None:
        worker, began = self._any(), time.time()
        worker.signal(signal.SIGSTOP)
        time.sleep(LEASE * self.random.uniform(0.2, 0.6))
        worker.signal(signal.SIGCONT)
        self._add("SIGSTOP worker, less than its lease", began, worker.name)

    def _stop_long(self) -> None:
        worker, began = self._any(), time.time()
        worker.signal(signal.SIGSTOP)
        held = worker.held()
        time.sleep(LEASE + self.random.uniform(2, 4))
        worker.signal(signal.SIGCONT)
        self._add("SIGSTOP worker past its lease", began, worker.name, held=held)

    def _freeze_broker(self) -> None:
        began = time.time()
        self.bench.broker.freeze()
        time.sleep(self.random.uniform(2, 5))
        self.bench.broker.thaw()
        self._add("broker SIGSTOP 2-5 s", began)

    def _kill_broker(self) -> None:
        began = time.time()
        self.bench.broker.kill()
        time.sleep(self.random.uniform(0.5, 2))
        self.bench.broker.start(timeout=120)
        wait_until(self._writable, "the broker has loaded its data", 120)
        self._add("broker kill -9, back after 0.5-2 s", began)

    def _writable(self) -> bool:
        try:
            return bool(self.bench.client.ping())
        except redis.RedisError:
            return False

    def _kill_connections(self) -> None:
        began, client = time.time(), self.bench.client
        for one in connections(client):
            client.client_kill_filter(_id=one["id"])
        self._add("CLIENT KILL of all connections", began)

    # Judgement

    def left(self) -> list[str]:
        """What should not be there any more."""
        found, keys, client = [], Keys(), self.bench.client
        try:
            for queue in (*POOLS, SHARED):
                sizes = {
                    "ready": sum(int(client.llen(keys.queue(queue, s))) for s in keys.suffixes),
                    "delayed": int(client.zcard(keys.delayed(queue))),
                    "delayed messages": int(client.hlen(keys.delayed_messages(queue))),
                }
                found += [f"{size} {what} in {queue}" for what, size in sizes.items() if size]
            if held := self.bench.inflight():
                found.append(f"{held} in flight")
            if dead := int(client.hlen(keys.dead)):
                found.append(f"{dead} dead letters")
            if client.scard(keys.reaping):
                found.append("a list of the dead")
        except redis.RedisError as error:
            found.append(repr(error))
        return found

    def growth(self) -> Iterator[tuple[str, list[int], list[int]]]:
        """(worker, descriptors, resident MB) early and late of the workers that still live."""
        for worker in self.workers.values():
            taken = self.samples[worker.name]
            third = len(taken) // 3
            if third < 2:
                continue
            parts = (taken[third // 2 : third + third // 2], taken[-third:])
            files = [int(median(one[0] for one in part)) for part in parts]
            memory = [int(median(one[1] for one in part) / 1e6) for part in parts]
            yield worker.name, files, memory

    def report(self) -> tuple[bool, list[str]]:
        """Whether it passed; the table (markdown), and what was wrong."""
        found = self.accounts
        lost, twice, left = found.lost(), found.ids_twice(), self.left()
        missing = max(0, found.check_results(now=True) - len(lost))
        behind = [
            n for n in lost if any(b in found.failed for b in range(n - found.sent[n].after, n))
        ]
        allowed, refused = Judge(found, self.faults).repeats()
        repeats = sum(allowed.values()) + len(refused)
        may = sum(len(f.held) + bool(f.pid) for f in self.faults)
        effects = sum(1 for runs in found.runs.values() if any(r.word == "ran" for r in runs))
        kinds = Counter(fault.kind for fault in self.faults)
        rows: list[tuple[str, object]] = [
            ("numbers asked for", self.tasks),
            ("published and acknowledged", len(found.sent)),
            ("publishes that raised", len(found.raised)),
            ("in calls of map_delay that gave fewer ids, without an error", found.untold),
            ("numbers with an effect", effects),
            ("lost", len(lost) - len(behind)),
            ("never published, since the task before in its chain or chord failed", len(behind)),
            ("repeats seen, of them not allowed", f"{repeats}, {len(refused)}"),
            ("repeats, workers' hands at faults (most)", may),
            *((f"repeats: {kind}", count) for kind, count in allowed.most_common()),
            ("results compared, not there", f"{found.checked}, {missing}"),
            (
                "get() in the publishing process: answered, raised or too late",
                f"{found.got}, {found.late}",
            ),
            ("wrong results", len(found.wrong)),
            ("results that are an error", len(found.failed)),
            ("ids twice", len(twice)),
            ("left on the broker", "; ".join(left) or "nothing"),
            *((f"fault: {kind}", count) for kind, count in sorted(kinds.items())),
            *((f"runs on {pool}", found.pools[pool]) for pool in POOLS),
            *((f"published by {kind}", count) for kind, count in sorted(found.kinds.items())),
            ("seconds", f"{self.took:.0f}"),
            ("tasks a second", f"{effects / self.took:.0f}"),
        ]
        long = self.seconds >= SETTLED
        for name, files, memory in self.growth():
            if "kept" in name or not self.pairs:
                rows.append((f"{name}: descriptors, MB", f"{files}, {memory}"))
                if long and (files[1] > files[0] + 8 or memory[1] > memory[0] + 40):
                    self.problems.append(f"{name} grew: {files} descriptors, {memory} MB")
        wrong = [
            *self.problems,
            *(f"lost: {n} {found.sent[n]} {found.runs.get(n)}" for n in lost[:50]),
            *(f"not allowed: {one}" for one in refused[:50]),
            *found.wrong[:50],
            *(f"failed: {number} {error}" for number, error in list(found.failed.items())[:50]),
            *twice[:50],
            *left,
        ]
        passed = not (wrong or missing or found.untold)
        lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
        return passed, [*lines, "", "passed" if passed else "FAILED", *wrong]


def soak(
    directory: Path,
    *,
    tasks: int,
    seconds: float,
    interval: float = 10,
    pairs: bool = True,
    seed: int = 0,
    fsync: str = "always",
    say: Callable[[str], None] = print,
) -> tuple[bool, list[str]]:
    """Run one; whether it passed, and its table. ``interval``: mean seconds between two faults;
    ``pairs``: each pool has a second worker that is never killed."""
    config: dict[str, str | int] = {"appendfsync": fsync}
    with (
        BrokerProcess(persistent=True, config=config) as broker,
        Bench(broker, "cloche+redis", directory) as bench,
    ):
        # The two directories are the accounts': make the harness' own ledger file step aside.
        bench.ledger.path.unlink()
        one = Soak(bench, tasks, seconds, interval, pairs, random.Random(seed), say)
        one.run()
        return one.report()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--interval", type=float, default=10, help="mean seconds between faults")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--fsync", choices=("always", "everysec"), default="always")
    parser.add_argument("--report", type=Path, help="file for the table")
    words = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and end the workers on the way
    directory = Path(tempfile.mkdtemp(prefix="soak-"))
    print(f"seed {words.seed}, logs and ledger in {directory}", flush=True)
    passed, lines = soak(
        directory,
        tasks=words.tasks,
        seconds=words.minutes * 60,
        interval=words.interval,
        seed=words.seed,
        fsync=words.fsync,
        say=lambda line: print(line, flush=True),
    )
    print("\n".join(lines))
    if words.report:
        words.report.write_text("\n".join(lines) + "\n")
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
