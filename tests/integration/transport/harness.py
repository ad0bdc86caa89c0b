"""Real Celery workers in processes of their own, and what their tasks left in the ledger."""

from __future__ import annotations

import json
import os
import signal as signals
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
from celery import Celery

from cloche.testing import BrokerProcess
from tests.commands import Forked

APP = "tests.integration.transport.ledger_app"
ROOT = Path(__file__).parents[3]


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


class Worker(Forked):
    """``celery worker`` in a process group of its own."""

    ready = "ready."

    def __init__(
        self,
        bench: Bench,
        pool: str,
        concurrency: int,
        url: str,
        conf: dict[str, Any],
        environ: dict[str, str],
    ) -> None:
        log = bench.directory / f"worker-{len(bench.workers)}.log"
        super().__init__(
            self._words(pool, concurrency, log.stem),
            log,
            directory=ROOT,
            environ={
                **os.environ,
                "LEDGER_BROKER": url,
                "LEDGER_FILE": str(bench.ledger.path),
                "LEDGER_CONF": json.dumps(conf),
                "PYTHONPATH": str(ROOT),
                "PYTHONWARNINGS": "ignore",
                **environ,
            },
        )
        self.start()

    def _words(self, pool: str, concurrency: int, name: str) -> list[str]:
        words = ["-m", "celery", "-A", APP, "worker", "-l", "INFO"]
        return [*words, "-P", pool, "-c", str(concurrency), "-n", f"{name}@test"]

    @property
    def log(self) -> str:
        return self.output

    @property
    def alive(self) -> bool:
        return not self.ended

    def signal(self, number: int, *, group: bool = True) -> None:
        """To the worker and its children."""
        super().signal(number, group=group)

    def stop(self, seconds: float = 60, how: int = signals.SIGTERM) -> int:
        """SIGTERM to the worker, as a supervisor does; its exit code."""
        self.process.send_signal(how)
        return self.process.wait(timeout=seconds)


def connections(client: redis.Redis) -> list[dict[str, str]]:
    """CLIENT LIST without the asker's own."""
    own = client.client_id()
    return [one for one in client.client_list() if one["id"] != str(own)]
