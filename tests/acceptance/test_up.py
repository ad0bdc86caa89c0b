"""``cloche up`` as a person lives with it: starting, stopping, faults, bad input."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psutil
import pytest

from cloche.testing import BrokerProcess, clean_environ, free_port, wait_until
from tests.acceptance.source import Source
from tests.acceptance.stack import Stack

MIB = 1024**2
EXAMPLES = Path(__file__).parents[2] / "examples"


#: One worker for every queue: a start costs less than with one for each family.
QUEUES = ["default", "download_queue", "logs", "maintenance_queue"]
ONE_WORKER = {"worker": {"queues": QUEUES, "concurrency": 2}}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The directory of the tests that may meet what an earlier one left running or ended there."""
    environ = {
        "CLOCHE_DASHBOARD__ENABLED": "false",
        "CLOCHE_WORKERS": json.dumps(ONE_WORKER),
        "CLOCHE_BROKER__VISIBILITY_TIMEOUT": "3",
    }
    made = Stack(tmp_path_factory.mktemp("up"), environ=environ)
    yield made
    made.close()


@pytest.fixture
def stack(shared: Stack) -> Stack:
    """Running."""
    if not shared.started or shared.ended:
        shared.log_path.unlink(missing_ok=True)
        shared.start().wait_ready()
    return shared


def test_it_tells_where_to_look_and_stops_in_order_on_ctrl_c(tmp_path: Path) -> None:
    with Stack(tmp_path) as stack:
        assert f"http://localhost:{stack.service_port}" in stack.output
        assert "messages survive a stop" in stack.output
        assert "environment (" in stack.output, "where settings came from"
        for url in (stack.service, stack.dashboard):
            assert httpx2.get(url + "/readyz", timeout=10).status_code == httpx2.codes.OK
            assert httpx2.get(url + "/", timeout=10).status_code == httpx2.codes.OK
        stack.signal(signal.SIGINT)
        assert stack.process.wait(60) == 0
        stack.wait_gone()
        assert "Traceback" not in stack.output


def test_a_second_one_in_the_same_directory_is_told_of_the_first(stack: Stack) -> None:
    done = refused(stack.directory)
    assert done.returncode == 1
    assert "already runs" in done.stderr
    assert str(stack.pid) in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_polite_signals_stop_it_in_order_too(stack: Stack, number: signal.Signals) -> None:
    stack.signal(number)
    assert stack.process.wait(60) == 0
    stack.wait_gone()


def ask_for_slow_download(stack: Stack, source: Source) -> str:
    """A download that hangs after a megabyte, running in a worker."""
    source.gate.clear()
    url = source.url(8 * MIB, "slow.bin")
    identifier: str = httpx2.post(f"{stack.service}/api/downloads", json={"url": url}).json()["id"]
    path = f"{stack.service}/api/downloads/{identifier}"
    wait_until(lambda: httpx2.get(path).json()["received"] > 0, "bytes to arrive")
    return identifier


def ends(stack: Stack, identifier: str) -> None:
    path = f"{stack.service}/api/downloads/{identifier}"
    wait_until(lambda: httpx2.get(path).json()["state"] == "done", "the task to end", 60)


def test_a_second_ctrl_c_does_not_wait_for_running_tasks_and_loses_none(stack: Stack) -> None:
    with Source() as source:
        identifier = ask_for_slow_download(stack, source)
        stack.signal(signal.SIGINT)
        wait_until(lambda: "SIGINT: stopping" in stack.output, "the stop to begin")
        stack.signal(signal.SIGINT)
        assert stack.process.wait(15) == 130
        stack.wait_gone()
        source.gate.set()
        # From here on a stop does not wait long for what runs.
        stack.environ |= {"CLOCHE_STOP__SOFT": "1", "CLOCHE_STOP__GRACE": "5"}
        stack.start().wait_ready()
        ends(stack, identifier)


@pytest.mark.parametrize("name", ["worker", "service", "broker"])
def test_a_killed_process_is_started_again(stack: Stack, name: str) -> None:
    def main_process() -> psutil.Process | None:
        return next(iter(stack.processes(name)), None)

    first = wait_until(main_process, f"the {name}")
    assert first is not None
    first.kill()

    def another() -> bool:
        now = main_process()
        return now is not None and now.pid != first.pid

    wait_until(another, f"another {name}", 30)
    with Source() as source:

        def works() -> bool:
            try:
                asked = httpx2.post(
                    f"{stack.service}/api/downloads", json={"url": source.url(MIB)}, timeout=5
                )
                path = f"{stack.service}/api/downloads/{asked.json()['id']}"
                return bool(httpx2.get(path, timeout=5).json()["state"] == "done")
            except (httpx2.TransportError, KeyError):
                return False

        wait_until(works, "a download afterwards", 60)


def test_a_killed_launcher_leaves_nothing_behind_and_loses_no_task(stack: Stack) -> None:
    with Source() as source:
        identifier = ask_for_slow_download(stack, source)
        stack.signal(signal.SIGKILL)
        stack.process.wait(60)
        stack.wait_gone(40)
        source.gate.set()
        stack.start().wait_ready()
        ends(stack, identifier)


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
