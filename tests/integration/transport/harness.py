"""Real Celery workers in processes of their own, and what their tasks left in the ledger."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
from celery import Celery

from cloche.testing import BrokerProcess

APP = "tests.integration.transport.ledger_app"
ROOT = Path(__file__).parents[3]


def wait_until(true: Callable[[], object], what: str, seconds: float = 40) -> None:
    """Wait for a condition; fail with ``what`` when it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


@dataclass(frozen=True, slots=True)
class Effect:
    """A line of the ledger: what happened, in which process, when (Unix s), in which run."""

    word: str
    number: int
    pid: int
    at: float
    run: str


class Ledger:
    """What tasks did, in order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def effects(self, word: str | None = None) -> list[Effect]:
        """Those of that word, or all."""
        found = []
        for line in self.path.read_text().splitlines():
            name, number, pid, at, run = line.split()
            if word in (None, name):
                found.append(Effect(name, int(number), int(pid), float(at), run))
        return found

    def words(self) -> list[tuple[str, int]]:
        """(word, number) of each effect."""
        return [(effect.word, effect.number) for effect in self.effects()]

    def count(self, word: str) -> Counter[int]:
        """How often each number had that effect."""
        return Counter(effect.number for effect in self.effects(word))


class Bench:
    """A broker, the URL a worker uses for it, a ledger, and the workers started on them."""

    def __init__(self, broker: BrokerProcess, scheme: str, directory: Path) -> None:
        self.broker = broker
        self.scheme = scheme
        self.url = f"{scheme}://127.0.0.1:{broker.port}/0"
        self.directory = directory
        self.ledger = Ledger(directory / "ledger")
        self.workers: list[Worker] = []
        self.client = broker.client()
        #: transport options of every worker and of the producer
        self.options: dict[str, Any] = (
            {"lease": 2.0} if "cloche" in scheme else {"visibility_timeout": 3600}
        )
        self._app: Celery | None = None

    @property
    def app(self) -> Celery:
        """The producer's side: a plain app on the same URL."""
        if self._app is None:
            self._app = Celery(broker=self.url)
            self._app.conf.update(task_ignore_result=True, broker_transport_options=self.options)
        return self._app

    def send(self, number: int, task: str = "record", **arguments: Any) -> None:
        """Publish one task."""
        options = {
            name: arguments.pop(name)
            for name in ("countdown", "eta", "queue", "priority", "retry", "task_id")
            if name in arguments
        }
        self.app.send_task(f"{APP}.{task}", [number], arguments, **options)

    def worker(
        self,
        pool: str = "prefork",
        concurrency: int = 2,
        *,
        url: str | None = None,
        ready: bool = True,
        conf: dict[str, Any] | None = None,
        environ: dict[str, str] | None = None,
        **options: Any,
    ) -> Worker:
        """Start a worker; ``options`` are transport options, ``conf`` Celery settings."""
        settings = {"broker_transport_options": {**self.options, **options}, **(conf or {})}
        found = Worker(self, pool, concurrency, url or self.url, settings, environ or {})
        self.workers.append(found)
        if ready:
            found.wait_ready()
        return found

    def done(self, numbers: int) -> bool:
        """Whether every number below ``numbers`` ended at least once."""
        return len(self.ledger.count("end")) >= numbers

    def inflight(self) -> int:
        """Messages in anybody's hands, by the server."""
        if "cloche" not in self.scheme:
            return int(self.client.hlen("unacked"))
        keys = [*self.client.keys("cloche:inflight:*"), *self.client.keys("cloche:reaping:*")]
        return sum(int(self.client.hlen(key)) for key in keys)

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
        if self._app is not None:
            self._app.close()
        self.client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            for worker in self.workers:
                print(f"--- {worker.log_path.name}\n{worker.log[-4000:]}")
        self.close()


class Worker:
    """``celery worker`` in a process group of its own."""

    def __init__(
        self,
        bench: Bench,
        pool: str,
        concurrency: int,
        url: str,
        conf: dict[str, Any],
        environ: dict[str, str],
    ) -> None:
        self.log_path = bench.directory / f"worker-{len(bench.workers)}.log"
        environment = {
            **os.environ,
            "LEDGER_BROKER": url,
            "LEDGER_FILE": str(bench.ledger.path),
            "LEDGER_CONF": json.dumps(conf),
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "ignore",
            **environ,
        }
        command = [sys.executable, "-m", "celery", "-A", APP, "worker", "-l", "INFO"]
        command += ["-P", pool, "-c", str(concurrency), "-n", f"{self.log_path.stem}@test"]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def wait_ready(self) -> None:
        wait_until(lambda: "ready." in self.log or not self.alive, "worker is ready", 60)
        assert self.alive, self.log

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def signal(self, number: int) -> None:
        """To the worker and its children."""
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """kill -9 of the whole group; stopped ones too."""
        with contextlib.suppress(ProcessLookupError):
            self.signal(signal.SIGKILL)
        self.process.wait(timeout=10)

    def stop(self, seconds: float = 60) -> int:
        """SIGTERM to the worker, as a supervisor does; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=seconds)


def connections(client: redis.Redis) -> list[dict[str, str]]:
    """CLIENT LIST without the asker's own."""
    own = client.client_id()
    return [one for one in client.client_list() if one["id"] != str(own)]
