"""Workers that others started: found, shown, adopted, replaced, or left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cloche.testing import BrokerProcess, wait_until
from tests.acceptance.background import SHOP, Background

OTHER = SHOP.replace("shop", "bakery")


@pytest.fixture(scope="module")
def server() -> Iterator[BrokerProcess]:
    with BrokerProcess() as found:
        yield found


@pytest.fixture
def project(tmp_path: Path, server: BrokerProcess) -> Iterator[Background]:
    made = Background(
        tmp_path / "project",
        environ={"CLOCHE_BROKER__EMBEDDED": "never", "REDIS_URL": server.url},
    )
    (made.directory / "bakery.py").write_text(OTHER)
    made.environ["CLOCHE_BEAT__ENABLED"] = "false"
    yield made
    made.close()


def bare(
    project: Background, *words: str, app: str = "shop", **more: Any
) -> subprocess.Popen[bytes]:
    """``celery -A shop worker`` from another terminal, answering already."""
    log = project.directory / f"bare-{app}-{len(project.processes())}.log"
    with log.open("ab") as out:
        process: subprocess.Popen[bytes] = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", app, "worker", "-c", "1", "-l", "INFO", *words],
            cwd=project.directory,
            env=project.environ,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            **more,
        )
    wait_until(lambda: "ready." in log.read_text(), f"{words} to be ready", 60)
    return process


def alive(process: subprocess.Popen[bytes]) -> bool:
    return process.poll() is None


def test_a_bare_worker_is_shown_and_adopted_and_succeeded(project: Background) -> None:
    found = bare(project)
    node = f"celery@{os.uname().nodename}"
    row = project.ps()[node]
    assert row["kind"] == "foreign"
    assert row["pid"] == found.pid
    assert row["queues"] == ["shop"]
    told = project.cloche("start", "--on-existing", "adopt")
    assert f"{node} (pid {found.pid}, up " in told
    assert ": shop; prefork × 1" in told
    rows = project.ps()
    assert (rows["worker"]["kind"], rows["worker"]["pid"]) == ("adopted", found.pid)
    assert len(project.workers()) == 1, "it stands in for the declared worker"
    project.cloche("start")
    assert len(project.workers()) == 1
    project.publish(0, 20)
    project.wait_counted(20)
    found.terminate()
    found.wait(30)
    wait_until(lambda: project.ps()["worker"]["kind"] == "ours", "its successor", 30)
    project.cloche("wait", "--ready", "worker")
    assert len(project.workers()) == 1


def test_an_adopted_worker_is_stopped_with_the_rest_and_survives_its_launcher(
    project: Background,
) -> None:
    found = bare(project)
    project.cloche("start")
    (launcher,) = project.launchers()
    launcher.kill()
    wait_until(lambda: not project.mains("cloche-guard"), "the guard's work", 30)
    assert alive(found), "it is not the guard's"
    project.cloche("start")
    assert project.ps()["worker"]["pid"] == found.pid
    (launcher,) = project.launchers()
    launcher.terminate()
    wait_until(lambda: not project.launchers(), "its end", 30)
    assert alive(found), "only those it started end with it"
    project.cloche("start")
    project.cloche("stop")
    assert found.wait(10) == 0
    project.wait_gone()


def test_a_bare_worker_is_replaced(project: Background) -> None:
    found = bare(project)
    project.cloche("start", "--on-existing", "replace")
    assert found.wait(30) == 0
    assert project.ps()["worker"]["kind"] == "ours"
    assert len(project.workers()) == 1
    another = bare(project)
    project.cloche("start", "--on-existing", "replace")
    assert another.wait(30) == 0
    assert len(project.workers()) == 1


def test_they_may_be_left_or_forbidden(project: Background) -> None:
    found = bare(project)
    told = project.cloche("start", "--on-existing", "fail", code=1)
    assert f"pid {found.pid}" in told
    assert project.mains("cloche", "start") == []
    project.cloche("start", "--on-existing", "leave")
    rows = project.ps()
    assert rows["worker"]["kind"] == "ours"
    assert rows[f"celery@{os.uname().nodename}"]["kind"] == "foreign"
    assert len(project.workers()) == 2
    project.cloche("stop", f"celery@{os.uname().nodename}")
    assert found.wait(10) == 0
    assert len(project.workers()) == 1


def test_a_person_is_asked(project: Background) -> None:
    found = bare(project)
    shown = project.on_terminal("start", asked="[q]uit?", answer="r\n")
    assert f"(pid {found.pid}, up " in shown
    assert found.wait(30) == 0
    assert project.ps()["worker"]["kind"] == "ours"


def test_piled_up_workers_of_one_name_are_all_found_and_stopped(project: Background) -> None:
    pile = [bare(project, "-P", "solo") for _ in range(3)]
    script = (
        "import cloche, json\n"
        "print(json.dumps(sorted(one.pid for one in cloche.discover_existing_workers())))\n"
        "cloche.stop_all_existing_workers()\n"
        "print(len(cloche.discover_existing_workers()))\n"
    )
    seen, left = project.python(script).splitlines()
    assert seen == str(sorted(process.pid for process in pile))
    assert left == "0"
    assert not any(alive(process) for process in pile)


def test_a_worker_started_by_a_script_of_ones_own_is_found(project: Background) -> None:
    log = project.directory / "own.log"
    with log.open("ab") as out:
        found = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "from shop import app\n"
                "app.worker_main(['worker', '-P', 'solo', '-l', 'INFO', '-n', 'own@%h'])",
            ],
            cwd=project.directory,
            env=project.environ,
            stdout=out,
            stderr=out,
        )
    wait_until(lambda: "ready." in log.read_text(), "own worker", 60)
    assert project.ps()[f"own@{os.uname().nodename}"]["pid"] == found.pid
    told = project.cloche("stop", "--existing")
    assert "own@" in told
    assert found.wait(10) == 0


def test_celery_multi_is_found_and_pool_processes_are_not_counted(project: Background) -> None:
    multi = [sys.executable, "-m", "celery", "-A", "shop", "multi"]
    where = ["--pidfile=%n.pid", "--logfile=%n.log"]
    subprocess.run(
        [*multi, "start", "one", "two", "-c", "2", *where],
        cwd=project.directory,
        env=project.environ,
        check=True,
        capture_output=True,
        timeout=60,
    )
    host = os.uname().nodename
    wait_until(lambda: {f"one@{host}", f"two@{host}"} <= project.ps().keys(), "both", 60)
    rows = project.ps()
    pids = {int((project.directory / f"{name}.pid").read_text()) for name in ("one", "two")}
    assert {row["pid"] for row in rows.values()} == pids
    assert "one@" in project.cloche("stop", "--existing")
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids), "both gone", 20)


def test_another_application_and_another_broker_are_not_touched(project: Background) -> None:
    baker = bare(project, "-n", "baker@%h", app="bakery")
    with BrokerProcess() as elsewhere:
        environ, project.environ = project.environ, {**project.environ, "REDIS_URL": elsewhere.url}
        stranger = bare(project, "-n", "stranger@%h")
        project.environ = environ
        told = project.cloche("start", "--on-existing", "replace")
        assert "runs already" not in told
        rows = project.ps()
        assert rows["worker"]["kind"] == "ours"
        assert rows[f"baker@{os.uname().nodename}"]["kind"] == "elsewhere"
        assert not any("stranger" in name for name in rows)
        project.cloche("stop", "--existing")
        assert alive(baker)
        assert alive(stranger)
        for process in (baker, stranger):
            process.terminate()
            process.wait(20)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can start another user's process")
def test_another_users_worker_is_not_touched(project: Background) -> None:
    # Becomes another user once it is ready: that one may not read Python's files here.
    (project.directory / "celery").write_text(
        "import os, sys\n"
        "sys.path.insert(0, os.getcwd())\n"
        "from celery.signals import worker_ready\n"
        "from shop import app\n"
        "worker_ready.connect(lambda **_: os.setuid(65534), weak=False)\n"
        "app.worker_main(['worker', '-P', 'solo'])\n"
    )
    worker = subprocess.Popen(
        [sys.executable, "celery", "worker"], cwd=project.directory, env=project.environ
    )
    wait_until(lambda: psutil.Process(worker.pid).username() == "nobody", "another user")
    wait_until(lambda: project.ps(), "its answer", 20)
    assert psutil.Process(worker.pid).username() == "nobody"
    node = f"celery@{os.uname().nodename}"
    assert project.ps()[node]["kind"] == "elsewhere"
    project.cloche("start", "--on-existing", "replace")
    assert project.ps()["worker"]["kind"] == "ours"
    told = project.cloche("stop", node, code=1)
    assert "no process" in told
    project.cloche("stop", "--existing")
    assert alive(worker)
    worker.send_signal(signal.SIGTERM)
    worker.wait(20)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a pid namespace")
def test_a_worker_that_is_pid_1_of_a_container_is_found(project: Background) -> None:
    if subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True).returncode:
        pytest.skip("NOT TESTED: this kernel gives no pid namespace")
    log = project.directory / "container.log"
    with log.open("ab") as out:
        outer = subprocess.Popen(
            [
                "unshare",
                "--pid",
                "--uts",
                "--fork",
                "--mount-proc",
                "--kill-child",
                "sh",
                "-c",
                "hostname box && exec env HOSTNAME=box "
                f"{sys.executable} -m celery -A shop worker -P solo -l INFO",
            ],
            cwd=project.directory,
            env=project.environ,
            stdout=out,
            stderr=out,
        )
    wait_until(lambda: "ready." in log.read_text(), "the container", 60)
    (inner,) = psutil.Process(outer.pid).children()
    row = project.ps()["celery@box"]
    assert (row["kind"], row["pid"]) == ("foreign", inner.pid)
    project.cloche("stop", "celery@box")
    assert outer.wait(20) == 0
