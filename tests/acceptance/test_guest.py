"""A project that knows nothing of Cloche is started, changed by nothing, and left again.

One project for many things that went wrong in others: packages called ``tasks`` and
``alembic``, a module called as one of Python's own, variables for a cache and a database, a
pool that Cloche has not, schedules added in every documented way.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from cloche.process.run_directory import RunDirectory
from cloche.testing import BrokerProcess, clean_environ, wait_until
from tests import commands

FILES = {
    "tasks/__init__.py": """
import os
import redis
from celery import Celery

BROKER = os.environ.get("CELERY_BROKER_URL", os.environ["PROJECT_BROKER"])
app = Celery("tasks", broker=BROKER, backend=BROKER, include=["tasks.download", "tasks.logs"])
app.conf.worker_pool = "gevent"
app.conf.worker_concurrency = 3
counters = redis.Redis.from_url(BROKER)
app.add_periodic_task(3600.0, app.signature("tasks.logs.write", ("now",)), name="at-once")

@app.on_after_configure.connect
def configured(sender, **_):
    what = sender.signature("tasks.logs.write", ("a",))
    sender.add_periodic_task(3600.0, what, name="configured")

@app.on_after_finalize.connect
def finalized(sender, **_):
    what = sender.signature("tasks.logs.write", ("b",))
    sender.add_periodic_task(3600.0, what, name="finalized")
""",
    "tasks/download.py": """
import time
from tasks import app, counters

@app.task
def film(seconds):
    time.sleep(seconds)
    queue = film.request.delivery_info["routing_key"]
    return [film.soft_time_limit, film.time_limit, film.default_retry_delay, queue]

@app.task
def held():
    counters.incr("held")
    while not counters.get("released"):
        time.sleep(0.05)
""",
    "tasks/logs.py": """
import os
from tasks import app, counters

@app.task
def write(line):
    counters.incr("lines")
    return "the project's own: " + line

@app.task
def variables():
    theirs = [n for n in os.environ if n.startswith(("CELERY_", "REDIS_", "DATABASE_"))]
    return sorted(n for n in theirs if not n.startswith("CELERY_LOG_"))  # Celery sets those
""",
    "alembic/__init__.py": "",
    ".env": "SOME=thing\nno assignment at all\n",
    "token.py": "raise RuntimeError('this is not the token of Python')\n",
}
ASK = """
import json, sys
from tasks import app
print(json.dumps(app.send_task(sys.argv[1], json.loads(sys.argv[2])).get(timeout=30)))
"""


class Project:
    """The directory, and commands in it as a person types them."""

    def __init__(self, directory: Path, broker: BrokerProcess) -> None:
        self.directory = directory
        for name, text in FILES.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        with contextlib.closing(sqlite3.connect(directory / "project.db")) as database:
            database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
            database.execute("INSERT INTO alembic_version VALUES ('a1b2c3')")
            database.commit()
        self.environ = clean_environ(
            PROJECT_BROKER=broker.url,
            REDIS_URL=broker.url.rpartition("/")[0] + "/9",
            DATABASE_URL=f"sqlite:///{directory / 'project.db'}",
            PYTHONWARNINGS="ignore",
        )

    def open(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [Path(sys.executable).with_name(words[0]), *words[1:]],
            cwd=self.directory,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def cloche(self, *words: str, code: int = 0) -> str:
        done = commands.cloche(*words, cwd=self.directory, env=self.environ, script=True)
        told = f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == code, told
        assert "Traceback" not in told, told
        return done.stdout

    def ask(self, task: str, *arguments: object) -> object:
        """What the project's own producer gets for an answer; it has never heard of Cloche."""
        return json.loads(self.python(ASK, task, json.dumps(arguments)))

    def python(self, program: str, *arguments: str) -> str:
        """What the project's own code prints."""
        program = f"import sys; sys.path.append('.')\n{program}"
        done = subprocess.run(
            [sys.executable, "-P", "-c", program, *arguments],
            cwd=self.directory, env=self.environ, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def close(self) -> None:
        commands.cloche("stop", "--now", cwd=self.directory, env=self.environ, script=True)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    with BrokerProcess() as broker:
        made = Project(tmp_path_factory.mktemp("project"), broker)
        yield made
        made.close()


def test_a_project_runs_as_it_did(project: Project) -> None:
    told = project.cloche("start", "-A", "tasks")
    assert "from app.conf.broker_url" in told
    assert "worker_pool = 'gevent': Cloche has no such pool and takes threads" in told
    assert "1 × threads, 3 at once" in told
    assert "http://" not in told, "no page"
    assert "database" not in told, "nothing is kept anywhere"

    assert project.ask("tasks.logs.write", "x") == "the project's own: x"
    assert project.ask("tasks.download.film", 0) == [None, None, 180, "celery"]
    assert project.ask("tasks.logs.variables") == ["DATABASE_URL", "REDIS_URL"]
    with contextlib.closing(sqlite3.connect(project.directory / "project.db")) as database:
        assert list(database.execute("SELECT name FROM sqlite_master")) == [("alembic_version",)]
        assert list(database.execute("SELECT * FROM alembic_version")) == [("a1b2c3",)]


def test_commands_without_a_name_speak_of_what_runs_here(project: Project) -> None:
    rows = json.loads(project.cloche("ps", "--json"))["processes"]
    assert sorted(row["name"] for row in rows) == ["beat", "worker"]
    _, said = project.open("cloche", "ps").communicate(timeout=60)
    assert said == "warning: .env:2: not NAME=value\n"
    assert "healthy" in project.cloche("health")
    seen = json.loads(project.cloche("schedules", "--json"))
    names = {"at-once", "configured", "finalized"}
    assert {one["name"] for one in seen["schedules"]} == names
    wait_until(lambda: "healthy" in project.cloche("health"), "the scheduler's notes")
    assert "app.conf.broker_url" in project.cloche("config", "explain", "broker.url")
    assert "tasks.logs.write" in project.cloche("tasks")
    assert "2 processes running" in project.cloche("restart")


def test_a_start_during_a_stop_waits_for_its_end(project: Project) -> None:
    launcher, release = begin_task(project)
    stop = project.open("cloche", "stop")
    wait_until(lambda: b"asked: stop" in (log(project)), "the stop")
    up = project.open("cloche", "up", "-A", "tasks")
    waits_for(launcher, up)
    release()
    assert "stopped" in stop.communicate(timeout=60)[0]
    wait_until(lambda: launcher_of(project) == up.pid, "the next launcher", 60)

    _, release = begin_task(project)
    up.send_signal(signal.SIGINT)
    wait_until(lambda: b"SIGINT: stopping" in log(project), "the stop")
    start = project.open("cloche", "start", "-A", "tasks")
    waits_for(up.pid, start)
    release()
    up.communicate(timeout=60)
    assert "2 processes running" in start.communicate(timeout=60)[0]
    assert launcher_of(project) not in (launcher, up.pid)


def waits_for(launcher: int, process: subprocess.Popen[str]) -> None:
    """What ``process`` says at first is whom it waits for."""
    assert process.stdout is not None
    word = (
        rf"Cloche is being stopped here \(pid {launcher}\); \d s of at most 45: worker \(pid \d+\)"
    )
    line = process.stdout.readline()
    assert re.search(word, line), line


def launcher_of(project: Project) -> int | None:
    owner = RunDirectory(project.directory / ".cloche").owner()
    return owner.identity.pid if owner else None


def begin_task(project: Project) -> tuple[int, Callable[[], object]]:
    """Have a task run; the launcher's pid, and what ends the task."""
    client = redis.Redis.from_url(project.environ["PROJECT_BROKER"], single_connection_client=True)
    client.delete("held", "released")
    project.python("from tasks.download import held\nheld.delay()")
    wait_until(lambda: client.get("held"), "the task")
    pid = launcher_of(project)
    assert pid is not None

    def release() -> None:
        client.set("released", 1)
        client.close()

    return pid, release


def log(project: Project) -> bytes:
    return (project.directory / ".cloche" / "logs" / "cloche.log").read_bytes()


def test_what_a_killed_launcher_left_is_taken_over_with_a_word(project: Project) -> None:
    # Its guard ends the rest within a second or two, unless a task runs.
    launcher, release = begin_task(project)
    os.kill(launcher, signal.SIGKILL)
    start = project.open("cloche", "start", "-A", "tasks")
    assert start.stdout is not None
    word = (
        "an earlier launcher was killed: what it left behind is being stopped; "
        r"\d s of at most 45: worker \(pid \d+\)"
    )
    for _ in range(2):  # the second one tells how long it has lasted
        line = start.stdout.readline()
        assert re.search(word, line), line
    release()
    assert "2 processes running" in start.communicate(timeout=60)[0]
    assert project.ask("tasks.logs.write", "y") == "the project's own: y"


def test_the_project_goes_on_without_it(project: Project) -> None:
    project.cloche("stop")
    stock = project.open("celery", "-A", "tasks", "worker", "-P", "solo", "-l", "ERROR")
    try:
        assert project.ask("tasks.logs.write", "z") == "the project's own: z"
    finally:
        stock.terminate()
        stock.communicate(timeout=30)


def test_a_taken_port_names_its_setting(project: Project) -> None:
    with BrokerProcess() as other:
        port = other.port
        (project.directory / "cloche.toml").write_text(
            f"[dashboard]\nenabled = true\nport = {port}\n"
        )
        process = project.open("cloche", "up", "-A", "tasks")
        _, err = process.communicate(timeout=60)
    assert process.returncode == 4
    assert f"port {port} is taken (dashboard.port)" in err
    assert "--set dashboard.port=" in err
