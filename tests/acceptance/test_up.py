"""``cloche up`` as a person lives with it: starting, stopping, faults, bad input."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from cloche.testing import BrokerProcess
from tests.acceptance.source import Source
from tests.acceptance.stack import Stack, clean_environ, free_port, wait_for

MIB = 1024**2
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    made = Stack(tmp_path)
    yield made
    made.close()


def test_it_tells_where_to_look_and_stops_in_order_on_ctrl_c(stack: Stack) -> None:
    stack.launch().wait_ready()
    assert f"http://localhost:{stack.service_port}" in stack.output
    assert "messages survive a stop" in stack.output
    assert "environment (" in stack.output, "where settings came from"
    for url in (stack.service, stack.dashboard):
        assert httpx.get(url + "/readyz", timeout=10).status_code == httpx.codes.OK
        assert httpx.get(url + "/", timeout=10).status_code == httpx.codes.OK
    stack.signal(signal.SIGINT)
    assert stack.wait_exit() == 0
    stack.wait_gone()
    assert "Traceback" not in stack.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_polite_signals_stop_it_in_order_too(stack: Stack, number: signal.Signals) -> None:
    stack.launch().wait_ready()
    stack.signal(number)
    assert stack.wait_exit() == 0
    stack.wait_gone()


def ask_for_slow_download(stack: Stack, source: Source) -> str:
    """A download that hangs after a megabyte, running in a worker."""
    source.gate.clear()
    url = source.url(8 * MIB, "slow.bin")
    identifier: str = httpx.post(f"{stack.service}/api/downloads", json={"url": url}).json()["id"]
    path = f"{stack.service}/api/downloads/{identifier}"
    wait_for("bytes to arrive", lambda: httpx.get(path).json()["received"] > 0)
    return identifier


def test_a_second_ctrl_c_does_not_wait_for_running_tasks_and_loses_none(stack: Stack) -> None:
    stack.environ["CLOCHE_BROKER__VISIBILITY_TIMEOUT"] = "3"
    with Source() as source:
        stack.launch().wait_ready()
        identifier = ask_for_slow_download(stack, source)
        stack.signal(signal.SIGINT)
        wait_for("the stop to begin", lambda: "SIGINT: stopping" in stack.output)
        stack.signal(signal.SIGINT)
        assert stack.wait_exit(15) == 130
        stack.wait_gone()
        source.gate.set()
        stack.launch().wait_ready()
        path = f"{stack.service}/api/downloads/{identifier}"
        wait_for("the task to end", lambda: httpx.get(path).json()["state"] == "done", 60)


def test_a_killed_launcher_leaves_nothing_behind_and_loses_no_task(stack: Stack) -> None:
    stack.environ["CLOCHE_BROKER__VISIBILITY_TIMEOUT"] = "3"
    stack.environ["CLOCHE_STOP__SOFT"] = "1"
    stack.environ["CLOCHE_STOP__GRACE"] = "5"
    with Source() as source:
        stack.launch().wait_ready()
        identifier = ask_for_slow_download(stack, source)
        stack.signal(signal.SIGKILL)
        stack.wait_exit()
        stack.wait_gone(40)
        source.gate.set()
        stack.launch().wait_ready()
        path = f"{stack.service}/api/downloads/{identifier}"
        wait_for("the task to end", lambda: httpx.get(path).json()["state"] == "done", 60)


@pytest.mark.parametrize("name", ["worker", "service", "broker"])
def test_a_killed_process_is_started_again(stack: Stack, name: str) -> None:
    stack.launch().wait_ready()

    def main_process() -> psutil.Process | None:
        return next(iter(stack.processes(name)), None)

    first = wait_for(f"the {name}", main_process)
    assert first is not None
    first.kill()

    def another() -> bool:
        now = main_process()
        return now is not None and now.pid != first.pid

    wait_for(f"another {name}", another, 30)
    with Source() as source:

        def works() -> bool:
            try:
                asked = httpx.post(
                    f"{stack.service}/api/downloads", json={"url": source.url(MIB)}, timeout=5
                )
                path = f"{stack.service}/api/downloads/{asked.json()['id']}"
                return bool(httpx.get(path, timeout=5).json()["state"] == "done")
            except (httpx.TransportError, KeyError):
                return False

        wait_for("a download afterwards", works, 60)


def test_a_project_that_knows_nothing_of_cloche_runs_unchanged(tmp_path: Path) -> None:
    project = tmp_path / "shop"
    project.mkdir()
    (project / "shop.py").write_text((EXAMPLES / "shop" / "shop.py").read_text())
    with Stack(project, "-A", "shop") as stack:
        url = stack.output.split("redis://")[1].split()[0]
        assert "@" in url, "the password is not shown"
        environ = {**stack.environ, "CELERY_BROKER_URL": "redis://nobody.invalid/0"}
        asked = subprocess.run(
            [
                sys.executable,
                "-c",
                "from cloche.launch.environment import join\n"
                "from cloche.settings import load\n"
                "app = join(load({'app': 'shop'})).app\n"
                "add = app.send_task('shop.add', (2, 3)).get(timeout=20)\n"
                "print(add, app.send_task('shop.invoice', (7,)).get(timeout=20))",
            ],
            cwd=project,
            env={k: v for k, v in environ.items() if k != "CELERY_BROKER_URL"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert asked.stdout.strip() == "5 invoice 7", asked.stderr


def test_a_second_one_in_the_same_directory_is_told_of_the_first(stack: Stack) -> None:
    stack.launch().wait_ready()
    done = refused(stack.directory)
    assert done.returncode == 1
    assert "already runs" in done.stderr
    assert str(stack.process.pid if stack.process else "") in done.stderr


def refused(directory: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """``cloche up`` with input it must refuse: one message, no traceback, nothing left."""
    done = subprocess.run(
        [sys.executable, "-m", "cloche", "up", *arguments],
        cwd=directory,
        env=clean_environ(
            **{
                "CLOCHE_SERVICE__PORT": str(free_port()),
                "CLOCHE_DASHBOARD__PORT": str(free_port()),
                "CLOCHE_BROKER__START_TRIES": "2",
                **environ,
            }
        ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stderr.count("error:") == 1, done.stderr
    return done


def test_an_unreachable_broker_is_told_in_plain_language(tmp_path: Path) -> None:
    port = free_port()
    done = refused(tmp_path, REDIS_URL=f"redis://127.0.0.1:{port}/0")
    assert done.returncode == 3
    assert str(port) in done.stderr
    assert "fix:" in done.stderr


def test_a_wrong_password_is_told_and_not_shown(tmp_path: Path) -> None:
    with BrokerProcess(password="right") as broker:
        done = refused(tmp_path, REDIS_URL=f"redis://:wr0ngsecret@127.0.0.1:{broker.port}/0")
    assert done.returncode == 3
    assert "password" in done.stderr
    assert "wr0ngsecret" not in done.stdout + done.stderr


def test_a_taken_port_is_named_with_its_owner_and_the_next_free_one(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = refused(tmp_path, CLOCHE_SERVICE__PORT=str(port), CLOCHE_BROKER__EMBEDDED="always")
    assert done.returncode == 4
    assert str(port) in done.stderr
    assert "pytest" in done.stderr or "pid" in done.stderr
    assert "free" in done.stderr


def test_malformed_settings_are_all_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "cloche.toml").write_text('[broker]\nulr = "x"\n[beat]\nenabled = "many"\n')
    done = refused(tmp_path)
    assert done.returncode == 2
    assert "cloche.toml:2" in done.stderr
    assert "did you mean" in done.stderr
    assert "cloche.toml:4" in done.stderr


def test_an_unknown_application_is_told(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text("app = 1\n")
    done = refused(tmp_path, "-A", "shpo")
    assert done.returncode == 5
    assert "did you mean 'shop'" in done.stderr
    assert refused(tmp_path, "-A", "shop:app").returncode == 5


def test_an_application_that_does_not_import_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text("import json\nboom = 1 / 0\n")
    done = refused(tmp_path, "-A", "shop")
    assert done.returncode == 5
    assert "shop.py:2" in done.stderr
    assert "ZeroDivisionError" in done.stderr


def test_a_database_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / ".cloche").mkdir()
    (tmp_path / ".cloche" / "cloche.db").write_text("this is no database, not at all\n" * 100)
    done = refused(tmp_path, CLOCHE_BROKER__EMBEDDED="always")
    assert done.returncode == 6
    assert "cloche.db" in done.stderr
