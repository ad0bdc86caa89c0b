"""One side of the comparison: a server, a worker, producers, and who listens to its events."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from celery import Celery

from cloche.testing import BrokerProcess

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
ASYNCIO = "cloche.aio.pool:TaskPool"
#: Tasks at once. What sleeps must not hold up others much; solo takes one.
CONCURRENCY = {"prefork": 4, "threads": 24, "solo": 1, "asyncio": 200}
#: What stock Celery runs where it has no such pool.
REFERENCE = {"asyncio": "prefork"}
_PROGRAM = re.compile(r"'p': '(x[0-9a-f]{10})', 'n': '(\w+)'")


@dataclass(frozen=True, slots=True)
class Setting:
    """``launcher``: stock, celery (``celery worker``) or cloche (``cloche worker``)."""

    launcher: str
    pool: str
    profile: str

    def __str__(self) -> str:
        return f"{self.launcher} {self.pool} {self.profile}"


class Side:
    """Starts everything on entry, ends it on exit."""

    def __init__(
        self, setting: Setting, ledger_url: str, directory: Path, *, coroutines: bool
    ) -> None:
        self.setting = setting
        self.name = str(setting).replace(" ", "-")
        self.ledger = redis.Redis.from_url(ledger_url, decode_responses=True, socket_timeout=None)
        self.server = BrokerProcess()
        self.log = directory / f"{self.name}.log"
        self.producer_log = directory / f"{self.name}.producer.log"
        self.coroutines = coroutines
        self._ledger_url, self._directory = ledger_url, directory
        self._processes: list[subprocess.Popen[bytes]] = []
        self._logs: list[Path] = []
        self._log_read = 0
        self.events: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.owners: dict[str, tuple[str, str]] = {}
        self.active: dict[str, float] = {}
        #: When anything was last heard of any program.
        self.busy = 0.0

    def __enter__(self) -> Side:
        self.server.start()
        self._listen()
        self._start_worker()
        self._start_producer(self.name, 24)
        self._start_producer(self.name + "-fork", 0)
        return self

    def __exit__(self, *_: object) -> None:
        self._receiver.should_stop = True
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        end = time.monotonic() + 8
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, end - time.monotonic()))
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(5)
        self._thread.join(5)
        self.ledger.close()
        self.server.close()

    def wait_ready(self) -> None:
        end = time.monotonic() + 90
        while " ready." not in self.log.read_text(errors="replace"):
            if self._processes[0].poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{self.name}: no worker:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.05)
        for name in (self.name, self.name + "-fork"):
            if self.ledger.blpop(["ready:" + name], 60) is None:
                raise RuntimeError(f"{name}: no producer:\n{self.producer_log.read_text()[-3000:]}")

    def ended(self) -> bool:
        """Whether the worker has. Raises RuntimeError if a producer has."""
        for process, log in list(zip(self._processes, self._logs, strict=True))[1:]:
            if process.poll() is not None:
                raise RuntimeError(
                    f"{self.name}: {process.args!r} ended:\n{log.read_text()[-3000:]}"
                )
        return self._processes[0].poll() is not None or self._died()

    def _died(self) -> bool:
        """Whether the worker's log says that it ends. Celery's own pool may hang while it does."""
        with self.log.open("rb") as log:
            log.seek(self._log_read)
            text = log.read()
        # Again from the last line, which may not be whole.
        self._log_read += text.rfind(b"\n") + 1
        return b"Unrecoverable error" in text

    def play(self, program: str, steps: Sequence[dict[str, Any]], *, finish: bool = False) -> None:
        """Hand a program to the producers."""
        forks = any(step["do"] == "fork" for step in steps)
        job = {"program": program, "steps": list(steps), "finish": finish}
        self.ledger.rpush(self.name + ("-fork" if forks else ""), json.dumps(job))

    def _environment(self, role: str) -> dict[str, str]:
        known = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("CLOCHE_", "CELERY_"))
        }
        setting = self.setting
        return known | {
            "DIFFERENTIAL_SIDE": setting.launcher,
            "DIFFERENTIAL_URL": self.server.url,
            "DIFFERENTIAL_LEDGER": self._ledger_url,
            "DIFFERENTIAL_PROFILE": setting.profile,
            "DIFFERENTIAL_ROLE": role,
            "DIFFERENTIAL_ASYNC": "1" if self.coroutines else "",
            "CLOCHE_BROKER__URL": self.server.url,
            "CELERY_CUSTOM_WORKER_POOL": ASYNCIO,
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": "ignore",
            "C_FORCE_ROOT": "1",
        }

    def _start_worker(self) -> None:
        pool, launcher = self.setting.pool, self.setting.launcher
        module, concurrency = "tests.differential.project", str(CONCURRENCY[pool])
        if launcher == "cloche":
            command = [
                str(BIN / "cloche"), "worker", "-A", module, "-P", pool, "-c", concurrency,
                "--name", "d", "-Q", "celery", "--run-dir", str(self._directory / self.name),
            ]  # fmt: skip
        else:
            command = [
                sys.executable, "-m", "celery", "-A", module, "worker", "-l", "INFO", "-E",
                "-P", "custom" if pool == "asyncio" else pool, "-c", concurrency, "-n", "d@%h",
                "--without-mingle", "--without-gossip",
            ]  # fmt: skip
        self._start(command, self.log, "worker")

    def _start_producer(self, jobs: str, threads: int) -> None:
        command = [sys.executable, "-m", "tests.differential.producer", jobs, str(threads)]
        self._start(command, self.producer_log, "producer")

    def _start(self, command: Sequence[str], log: Path, role: str) -> None:
        self._logs.append(log)
        with log.open("ab") as output:
            self._processes.append(
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=self._environment(role),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def _listen(self) -> None:
        app = Celery("listener", broker=self.server.url)
        self._connection = app.connection_for_read()
        self._receiver = app.events.Receiver(self._connection, handlers={"*": self._heard})

        def listen() -> None:
            with contextlib.suppress(Exception):
                self._receiver.capture(wakeup=False)

        self._thread = threading.Thread(target=listen, daemon=True)
        self._thread.start()

    def _heard(self, event: dict[str, Any]) -> None:
        uuid = event.get("uuid")
        if not isinstance(uuid, str):
            return
        self.events[uuid].append(event)
        self.busy = time.monotonic()
        if found := _PROGRAM.search(str(event.get("kwargs", ""))):
            self.owners.setdefault(uuid, (found[1], found[2]))
        if owner := self.owners.get(uuid):
            self.active[owner[0]] = time.monotonic()


def leftovers(side: Side) -> dict[str, list[str]]:
    """What is on the server in queues, in flight, unacknowledged or delayed: kind → texts."""
    found: dict[str, list[str]] = defaultdict(list)
    with side.server.client() as client:
        for key in client.scan_iter(count=1000):
            name = str(key)
            if name == "celery" or name.startswith("celery\x06\x16"):
                found["queue"] += [str(text) for text in client.lrange(name, 0, -1)]
            elif name == "unacked" or name.startswith("cloche:inflight:"):
                found["in flight"] += [str(text) for text in client.hvals(name)]
            elif name.startswith("cloche:delayed-messages:"):
                found["delayed"] += [str(text) for text in client.hvals(name)]
    return found
