"""On a live worker: the maintenance task, and records that belong to their task and run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cloche.app import create_app
from cloche.database import Database
from cloche.logs.read.filter import LogFilter
from cloche.logs.read.reader import LogReader
from cloche.settings import Settings, load
from cloche.testing import clean_environ, wait_until
from tests.integration.logs_read.rows import made, put

PROJECT = '''
import logging
from celery.signals import after_setup_logger
from cloche import ExecutionLogger, create_app
from cloche.logs.sources.stdlib import ExecutionLogHandler

app = create_app("shop")
log = ExecutionLogger(app)


@after_setup_logger.connect
def attach(logger: logging.Logger, **_: object) -> None:
    """Celery takes the root's handlers away when a worker starts: this one comes after."""
    logger.addHandler(ExecutionLogHandler(log))


speak = logging.getLogger("shop.till")
speak.setLevel("INFO")


@app.task(name="shop.sell")
def sell(run_id: str) -> None:
    """Everything said inside belongs to the task, and in the block to the run too."""
    log.info("shop", "open", "the shop opens")
    with log.run(run_id, name="sale", agent="till") as run:
        with run.step("pay"):
            speak.warning("few coins left", extra={"coins": 3})
    speak.info("the shop closes")
'''


@pytest.fixture
def project(broker_url: str, tmp_path: Path) -> Iterator[tuple[Settings, dict[str, str]]]:
    """A project, its settings, and a worker of it on the queues of this test."""
    (tmp_path / "shop.py").write_text(PROJECT)
    environ = clean_environ(
        CLOCHE_BROKER__URL=broker_url.rsplit("/", 1)[0] + "/9",
        CLOCHE_RUN_DIR=str(tmp_path / "run"),
        CLOCHE_LOGS__INTERVAL="0.1",
        CLOCHE_APP="shop",
    )
    log = tmp_path / "worker.log"
    with log.open("wb") as out:
        worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "shop", "worker", "-P", "threads", "-l", "INFO"],
            cwd=tmp_path,
            env=environ,
            stdout=out,
            stderr=out,
        )
    try:
        wait_until(lambda: b" ready." in log.read_bytes() or worker.poll(), "the worker", 40)
        assert worker.poll() is None, log.read_text()
        yield load(environ=environ, directory=tmp_path).settings, environ
    finally:
        worker.terminate()
        worker.wait(30)


def test_a_worker_expires_records_and_logs_what_its_tasks_say(
    project: tuple[Settings, dict[str, str]],
) -> None:
    settings, _ = project
    database = Database(settings)
    database.migrate()
    reader = LogReader(database)
    now = datetime.now(UTC)
    put(database, [made("old", at=now - timedelta(days=31)), made("new")])
    app = create_app("client", settings)
    planned = app.send_task("cloche.maintenance.expire_logs", (True,)).get(timeout=30)
    assert (planned["rows"], planned["dry_run"]) == (1, True)
    done = app.send_task("cloche.maintenance.expire_logs").get(timeout=30)
    assert (done["rows"], done["dry_run"]) == (1, False)
    assert json.dumps(done)
    left = {record.message for record in reader.page(LogFilter(category="test")).records}
    assert left == {"new"}

    sent = app.send_task("shop.sell", ("sale-1",))
    sent.get(timeout=30)

    def told() -> bool:
        return "the shop closes" in _messages(reader, task=sent.id)

    wait_until(told, "the records", 30)
    messages = _messages(reader, task=sent.id)
    assert messages[0] == "the shop opens"
    assert "few coins left" in messages
    everything = [record.message for record in reader.page(limit=1000).records]
    assert any("cloche.maintenance.expire_logs" in line for line in everything)
    assert not [line for line in everything if "Task cloche.logs" in line]
    inside = reader.page(LogFilter(run="sale-1")).records
    assert [(record.step, record.message) for record in reversed(inside)] == [
        (None, "sale started"),
        ("pay", "pay started"),
        ("pay", "few coins left"),
        ("pay", "pay done"),
        (None, "sale succeeded"),
    ]
    assert {record.agent for record in inside} == {"till"}
    assert {record.task_id for record in inside} == {sent.id}
    (coins,) = [record for record in inside if record.level == "warning"]
    assert (coins.category, coins.details) == ("shop.till", {"coins": 3})
    database.close()


def _messages(reader: LogReader, **fields: str) -> list[str]:
    return [record.message for record in reader.page(LogFilter(**fields)).records][::-1]


def test_it_is_scheduled_unless_the_application_says_otherwise() -> None:
    app = create_app("t", Settings())
    entry = app.conf.beat_schedule["cloche-expire-logs"]
    assert entry["task"] == "cloche.maintenance.expire_logs"
    assert app.amqp.router.route({}, entry["task"])["queue"].name == "maintenance_queue"
