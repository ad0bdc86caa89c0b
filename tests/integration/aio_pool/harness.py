"""Celery workers on the asyncio pool and on stock ones, and what they left in the ledger."""

from __future__ import annotations

import contextlib
import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from celery import Celery

from cloche.testing import clean_environ
from tests.commands import Forked

POOLS = {
    "asyncio": "cloche.aio.pool:TaskPool",
    "plain prefork": "cloche.worker.prefork:PreforkPool",
    "plain threads": "cloche.worker.threads:ThreadsPool",
}
ROOT = Path(__file__).parents[3]


class Worker(Forked):
    """``celery worker`` on the tests' application, with a queue of its own."""

    ready = " ready."

    def __init__(
        self,
        directory: Path,
        broker: str,
        name: str,
        *,
        pool: str = "asyncio",
        concurrency: int = 100,
        arguments: tuple[str, ...] = (),
        module: str = "tests.integration.aio_pool.jobs",
        environ: dict[str, str] | None = None,
        **conf: Any,
    ) -> None:
        self.name, self.pool = name, pool
        self.ledger = directory / f"{name}.ledger"
        self.conf = {
            "task_default_queue": name,
            "worker_pool": POOLS.get(pool, pool),
            "broker_connection_retry_on_startup": True,
            "worker_prefetch_multiplier": 1,
            "worker_cancel_long_running_tasks_on_connection_loss": False,
            "worker_hijack_root_logger": False,
            **conf,
        }
        variables = clean_environ(
            JOBS_BROKER=broker,
            JOBS_BACKEND=conf.pop("result_backend", broker.replace("cloche+", "")),
            JOBS_CONF=json.dumps(self.conf),
            JOBS_LEDGER=str(self.ledger),
            JOBS_POOL=pool,
            PYTHONPATH=str(ROOT),
            PYTHONWARNINGS="ignore",
            **(environ or {}),
        )
        self.app = Celery("tests.integration.aio_pool.jobs", broker=broker)
        self.app.conf.update(
            self.conf,
            result_backend=variables["JOBS_BACKEND"].replace("cloche+", ""),
            worker_pool="solo",
        )
        words = [
            "-m", "celery", "-A", module, "worker",
            "-l", "INFO", "-c", str(concurrency), "-E", "-n", f"{name}@test", *arguments,
        ]  # fmt: skip
        super().__init__(words, directory / f"{name}.log", directory=ROOT, environ=variables)
        self.ledger.touch()
        self.start()

    @property
    def log(self) -> str:
        return self.output

    def send(self, task: str, *args: Any, **options: Any) -> Any:
        """Publish a task to this worker: its ``AsyncResult``."""
        return self.signature(task, *args).apply_async(**options)

    def signature(self, task: str, *args: Any, **options: Any) -> Any:
        name = f"tests.integration.aio_pool.jobs.{task}"
        return self.app.signature(name, args=args, options=options)

    def notes(self, word: str) -> list[list[Any]]:
        """What the tasks noted under ``word``."""
        lines = (json.loads(line) for line in self.ledger.read_text().splitlines())
        return [line[1:] for line in lines if line[0] == word]

    def ask(self, question: str, *, timeout: float = 10) -> Any:
        """A remote control question to this worker alone: its answer."""
        to = [f"{self.name}@test"]
        inspect = self.app.control.inspect(destination=to, timeout=timeout)
        inspect.limit = 1
        answers = getattr(inspect, question)()
        return answers and answers[to[0]]

    def close(self) -> None:
        super().close()
        # Celery's results unsubscribe when they die: let them, while the broker is there.
        self.app.backend._pending_results.concrete.clear()
        gc.collect()
        self.app.backend.result_consumer.stop()
        self.app.backend.client.connection_pool.disconnect()
        self.app.close()
        del self.app
        gc.collect()


@contextlib.contextmanager
def worker(directory: Path, broker: str, name: str, **options: Any) -> Iterator[Worker]:
    """A worker that is ready, and gone at the end."""
    found = Worker(directory, broker, name, **options)
    try:
        yield found.wait_ready()
    except BaseException:
        print(f"--- {found.log_path.name}\n{found.log[-6000:]}")
        raise
    finally:
        found.close()
