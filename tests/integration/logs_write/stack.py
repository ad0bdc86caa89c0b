"""Broker, database, workers and producers of one test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from sqlalchemy import func, select

from cloche import Settings, create_app
from cloche.database import Database
from cloche.logs.table import log_dead_letters, log_records
from cloche.testing import clean_environ, wait_until

ROOT = Path(__file__).parents[3]
PROJECT = "tests.integration.logs_write.project"


class LogStack:
    """``database`` None: SQLite in ``directory``. ``environ`` are further settings."""

    def __init__(
        self,
        directory: Path,
        broker: str,
        database: str | None,
        *,
        transport: str = "cloche",
        **environ: str,
    ) -> None:
        self.directory = directory
        tables = {
            "CLOCHE_RUN_DIR": str(directory / "run"),
            "CLOCHE_BROKER__URL": broker,
            "CLOCHE_BROKER__TRANSPORT": transport,
            "CLOCHE_BROKER__LEASE": "2",
            **({"CLOCHE_DATABASE__URL": database} if database else {}),
            **environ,
        }
        self.environ = clean_environ(PYTHONPATH=str(ROOT), **tables)
        self.settings = Settings.model_validate(
            {
                "run_dir": directory / "run",
                "broker": {"url": SecretStr(broker), "transport": transport, "lease": 2},
                "database": {"url": database and SecretStr(database)},
            }
        )
        self.app = create_app("logs-client", self.settings, set_as_current=False)
        self.database = Database(self.settings)
        self.database.migrate()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._workers = 0

    def worker(self, pool: str = "prefork", concurrency: int = 2) -> subprocess.Popen[bytes]:
        """A worker that consumes the queue ``logs``, ready."""
        self._workers += 1
        log = self.directory / f"worker-{self._workers}.log"
        words = ["-m", "cloche", "worker", "-A", PROJECT, "-Q", "logs", "-P", pool]
        process = self.process(
            [*words, "-c", str(concurrency), "--name", f"logs-{self._workers}"], log
        )
        wait_until(lambda: "is ready" in log.read_text(), "the worker to be ready", 60)
        return process

    def producer(
        self, name: str, count: int, pause: float = 0.0, size: int = 0
    ) -> subprocess.Popen[bytes]:
        """A process that logs."""
        numbers = (str(count), str(pause), str(size))
        words = ["-m", "tests.integration.logs_write.producer", name, *numbers]
        return self.process(words, self.directory / f"{name}.json")

    def stats(self, name: str) -> dict[str, Any]:
        """What a producer told at its end."""
        found: dict[str, Any] = json.loads((self.directory / f"{name}.json").read_text())
        return found

    def process(self, words: Sequence[str], output: Path) -> subprocess.Popen[bytes]:
        """A Python process in a session of its own."""
        with output.open("wb") as log, output.with_suffix(".err").open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, *words],
                cwd=self.directory,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log if output.suffix == ".log" else errors,
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def rows(self) -> int:
        """How many records are stored."""
        with self.database.read() as connection:
            return connection.execute(select(func.count()).select_from(log_records)).scalar_one()

    def of_run(self, name: str) -> list[str]:
        """The messages of a run, in the order of their ids."""
        query = select(log_records.c.message).where(log_records.c.run_id == name)
        with self.database.read() as connection:
            return list(connection.execute(query.order_by(log_records.c.id)).scalars())

    def letters(self) -> dict[str, int]:
        """Dead letters by reason."""
        query = select(log_dead_letters.c.reason, func.count()).group_by(log_dead_letters.c.reason)
        with self.database.read() as connection:
            return {reason: number for reason, number in connection.execute(query)}  # noqa: C416

    def close(self) -> None:
        """End everything."""
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                kill(process)
        self.app.close()
        self.database.close()


def kill(process: subprocess.Popen[bytes]) -> None:
    """kill -9 of a process and of all it has started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
