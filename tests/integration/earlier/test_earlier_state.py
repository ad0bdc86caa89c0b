"""A run directory, database, settings and names as an earlier version left them still work.

``state.tar.gz`` was made by the version before the packages were rearranged: ``cloche start``, a
task that logs, ``cloche stop one``, four tasks that nobody took (one with a countdown), then
``cloche stop``.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from celery import Celery

from cloche.database import Database
from cloche.logs.read.filter import LogFilter
from cloche.logs.read.reader import LogReader
from cloche.process.events import RestartedWorkers, recorded
from cloche.settings import load
from cloche.testing import clean_environ, wait_until
from tests import commands


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    with tarfile.open(Path(__file__).with_name("state.tar.gz")) as state:
        state.extractall(tmp_path, filter="data")
    (tmp_path / ".cloche").chmod(0o700)
    (tmp_path / ".cloche" / "broker").chmod(0o700)
    yield tmp_path
    _cloche(tmp_path, "stop")


def _cloche(project: Path, *words: str) -> str:
    done = commands.cloche(*words, cwd=project, env=clean_environ())
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _messages(project: Path) -> set[str]:
    settings = load(environ={}, directory=project).settings
    database = Database(settings.model_copy(update={"run_dir": project / ".cloche"}))
    try:
        page = LogReader(database).page(LogFilter.of(run="run-1"))
        return {record.message for record in page.records}
    finally:
        database.close()


def test_what_waited_runs_and_what_was_logged_is_there(project: Path) -> None:
    assert _messages(project) == {"1 and 2"}
    _cloche(project, "start")
    wanted = {"1 and 2", "0 and 10", "1 and 10", "2 and 10", "7 and 7"}
    wait_until(lambda: _messages(project) == wanted, "the tasks that nobody had taken", 60)
    asked = "; ".join(
        [
            "import json, shop",
            "ids = json.load(open('ids.json'))",
            "print([shop.celery.AsyncResult(id).get(timeout=20) for id in ids])",
        ]
    )
    done = commands.python(asked, cwd=project, env=clean_environ())
    assert json.loads(done.stdout) == [10, 11, 12, 14], done.stderr


def test_a_restart_it_has_noted_is_told(project: Path) -> None:
    (event,) = recorded(project / ".cloche")
    assert event["kind"] == "deaf-worker"
    lately = RestartedWorkers(project / ".cloche").lately(event["at"] + 1)
    assert lately["one"].told().startswith("it hung (it fetches nothing) and was restarted at ")


@pytest.mark.parametrize(
    "name",
    [
        "cloche.aio.pool:TaskPool",
        "cloche.broker.results:backend",
        "cloche.broker.results:RedisBackend",
        "cloche.broker.transport:Transport",
        "cloche.tasks.download:Downloads",
    ],
)
def test_a_name_that_configurations_may_hold_is_there(name: str) -> None:
    module, _, attribute = name.partition(":")
    assert getattr(import_module(module), attribute)


def test_the_url_of_a_result_backend_leads_to_it() -> None:
    app = Celery(broker="memory://", backend="cloche+redis://127.0.0.1:1/0")
    assert type(app.backend).__name__ == "RedisBackend"
    assert type(app.backend).__module__.startswith("cloche.broker.results.")
