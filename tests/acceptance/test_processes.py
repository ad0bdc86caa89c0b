"""``cloche start`` and its relatives as a person lives with them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from cloche.testing import wait_until
from tests.acceptance.background import Background


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Background]:
    made = Background(
        tmp_path_factory.mktemp("shared") / "project", environ={"CLOCHE_STOP__SOFT": "2"}
    )
    shown = made.on_terminal("start")
    assert "3 processes running" in shown
    yield made
    made.close()


@pytest.fixture
def stack(shared: Background) -> Background:
    """Running, with exactly what is declared."""
    shared.cloche("start")
    shared.cloche("scale", "worker=1")
    return shared


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Background]:
    made = Background(tmp_path / "project")
    yield made
    made.close()


def start_together(stack: Background, terminals: int) -> None:
    """``cloche start`` from several terminals at once."""
    started = [stack.open("start") for _ in range(terminals)]
    for process in started:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, out + err


def exactly_what_is_declared(stack: Background) -> None:
    assert len(stack.launchers()) == 1
    assert len(stack.workers()) == 1
    assert len(stack.mains("beat")) == 1
    running = {name for name, row in stack.ps().items() if row["state"] == "ready"}
    assert running == {"broker", "worker", "beat"}


@pytest.mark.parametrize(
    ("terminals", "times"), [(4, 8), pytest.param(10, 80, marks=pytest.mark.long)]
)
def test_starting_again_and_again_leaves_exactly_the_declared_workers(
    own: Background, terminals: int, times: int
) -> None:
    start_together(own, terminals)
    exactly_what_is_declared(own)
    pid = own.main("worker").pid
    for _ in range(times):
        own.cloche("start")
    start_together(own, terminals)
    exactly_what_is_declared(own)
    assert own.main("worker").pid == pid
    own.cloche("stop")
    own.wait_gone()


def test_it_outlives_the_terminal_it_was_started_from(shared: Background) -> None:
    exactly_what_is_declared(shared)


def test_a_narrow_terminal_shows_what_matters_most(stack: Background) -> None:
    shown = stack.on_terminal("ps", columns=60)
    lines = [re.sub("\x1b\\[[0-9;]*m", "", line) for line in shown.splitlines()]
    assert max(map(len, lines)) <= 60, shown
    assert lines[0].split()[:3] == ["NAME", "STATE", "PID"]
    assert "\x1b[1m" in shown
    assert "\x1b" not in stack.on_terminal("ps", columns=60, NO_COLOR="1")
    piped = stack.cloche("ps")
    assert "\x1b" not in piped
    assert "RESTARTS" in piped.splitlines()[0]


def test_ps_tells_what_each_process_is_and_does(stack: Background) -> None:
    worker = stack.ps()["worker"]
    assert worker["state"] == "ready"
    assert worker["queues"] == ["shop"]
    assert (worker["pool"], worker["concurrency"]) == ("prefork", 2)
    assert worker["rss"] > 1024**2
    assert worker["cpu"] is not None
    assert worker["restarts"] == 0
    assert abs(time.time() - worker["since"]) < 3600
    assert psutil.Process(worker["pid"]).environ()["CLOCHE_PROCESS"] == "worker"
    before = worker["processed"]
    stack.publish(0, 3)
    wait_until(lambda: stack.ps()["worker"]["processed"] == before + 3, "three more")


def test_names_stop_and_start_alone(stack: Background) -> None:
    worker = stack.main("worker").pid
    assert "stopped beat" in stack.cloche("stop", "beat")
    assert stack.ps()["beat"]["state"] == "stopped"
    assert stack.mains("beat") == []
    assert "is needed by worker" in stack.cloche("stop", "broker", code=1)
    stack.cloche("start", "beat")
    assert stack.ps()["beat"]["state"] == "ready"
    assert stack.main("worker").pid == worker


def test_a_page_is_started_by_name_and_a_taken_port_is_told(stack: Background) -> None:
    stack.cloche("start", "dashboard")
    assert stack.ps()["dashboard"]["state"] == "ready"
    stack.cloche("stop", "dashboard")
    squatter = subprocess.Popen(
        ["python3", "-m", "http.server", str(stack.dashboard_port), "--bind", "127.0.0.1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: psutil.Process(squatter.pid).net_connections(), "the squatter")
        told = stack.cloche("start", "dashboard", code=4)
        assert str(stack.dashboard_port) in told
        assert str(squatter.pid) in told
    finally:
        squatter.kill()
        squatter.wait()


def test_workers_grow_and_shrink_while_tasks_run_and_none_is_lost(stack: Background) -> None:
    stack.ledger.unlink(missing_ok=True)
    stack.publish(0, 60, 0.05)
    stack.cloche("scale", "worker=3")
    assert {"worker", "worker-2", "worker-3"} <= stack.ps().keys()
    assert len(stack.workers()) == 3
    stack.publish(60, 120, 0.05)
    stack.cloche("scale", "worker=1")
    assert len(stack.workers()) == 1
    stack.wait_counted(120)
    assert sorted(map(int, stack.written())) == list(range(120)), "some ran twice"


@pytest.mark.parametrize("words", [("beat=2",), ("wroker=2",), ("worker=many",), ("worker",)])
def test_what_cannot_be_scaled_is_told(stack: Background, words: tuple[str, ...]) -> None:
    code = 1 if words[0].endswith("=2") else 2
    told = stack.cloche("scale", *words, code=code)
    assert "worker" in told


def test_a_restart_has_a_new_worker_ready_before_the_old_one_stops(stack: Background) -> None:
    stack.ledger.unlink(missing_ok=True)
    before = stack.main("worker").pid
    stack.publish(0, 100, 0.05)
    told = stack.cloche("restart", "worker").splitlines()
    at = [
        next(n for n, line in enumerate(told) if line.startswith(what))
        for what in ("worker-2: ready", "worker: stopped", "worker: ready", "worker-2: stopped")
    ]
    assert at == sorted(at), told
    assert stack.main("worker").pid != before
    assert len(stack.workers()) == 1
    stack.wait_counted(100)
    assert sorted(map(int, stack.written())) == list(range(100)), "some ran twice"


def test_a_restart_at_once_kills_and_loses_nothing(stack: Background) -> None:
    stack.ledger.unlink(missing_ok=True)
    before = stack.main("worker").pid
    stack.publish(0, 40, 0.05)
    stack.cloche("restart", "worker", "--now")
    assert stack.main("worker").pid != before
    stack.wait_counted(40)


def test_a_restart_that_fails_leaves_the_old_ones_at_work(stack: Background) -> None:
    before = stack.main("worker").pid
    with broken(stack, "half a deploy"):
        told = stack.cloche("restart", "worker", code=1)
    assert "half a deploy" in told
    assert "go on as they were" in told
    assert stack.main("worker").pid == before
    assert len(stack.workers()) == 1


@contextmanager
def broken(stack: Background, why: str) -> Iterator[None]:
    """Meanwhile the application's module cannot be imported."""
    module = stack.directory / "shop.py"
    good = module.read_text()
    module.write_text(f"raise RuntimeError({why!r})\n")
    try:
        yield
    finally:
        module.write_text(good)


def test_a_worker_of_the_command_line(stack: Background) -> None:
    stack.cloche("start", "--queue", "mail,post", "--name", "mailer", "-c", "3", "-P", "threads")
    mailer = stack.ps()["mailer"]
    assert sorted(mailer["queues"]) == ["mail", "post"]
    assert (mailer["pool"], mailer["concurrency"]) == ("threads", 3)
    pid = mailer["pid"]
    stack.cloche("start", "--queue", "mail,post", "--name", "mailer", "-c", "3", "-P", "threads")
    stack.cloche("start")
    assert stack.ps()["mailer"]["pid"] == pid, "the same wish changes nothing"
    stack.cloche("start", "--queue", "mail", "--name", "mailer", "-P", "threads")
    assert stack.ps()["mailer"]["queues"] == ["mail"]
    stack.cloche("stop", "mailer")
    stack.cloche("start")
    exactly_what_is_declared(stack)


def test_a_worker_no_longer_declared_is_stopped_and_a_changed_one_restarted(
    own: Background,
) -> None:
    del own.environ["CLOCHE_WORKERS"]
    toml = own.directory / "cloche.toml"
    toml.write_text(
        '[workers.a]\nqueues = ["shop"]\nconcurrency = 1\n[workers.b]\nqueues = ["b"]\n'
    )
    own.cloche("start")
    assert {"a", "b"} <= own.ps().keys()
    toml.write_text(
        '[workers.a]\nqueues = ["shop"]\nconcurrency = 2\n[workers.c]\nqueues = ["c"]\n'
    )
    own.cloche("start")
    now = own.ps()
    assert {"a", "c"} <= now.keys()
    assert "b" not in now
    assert now["a"]["concurrency"] == 2
    assert len(own.workers()) == 2
    assert "service.port" in own.cloche("start", "--set", "service.port=1")


def test_a_stop_shows_the_tasks_it_waits_for_and_escalates(own: Background) -> None:
    own.environ |= {"CLOCHE_STOP__SOFT": "2", "CLOCHE_STOP__GRACE": "4"}
    own.cloche("start")
    identifier = own.send("shop.nap", 20)
    wait_until(lambda: "begun" in own.written(), "the task to begin")
    told = own.cloche("stop")
    assert f"still runs shop.nap [{identifier}], for" in told
    own.wait_gone()
    assert own.written() == ["begun"]
    own.cloche("start")
    wait_until(lambda: own.written().count("begun") == 2, "the task to run again")
    begun = time.monotonic()
    own.cloche("stop", "--now")
    assert time.monotonic() - begun < 20
    own.wait_gone()


def test_the_output_of_processes_is_shown_and_followed(stack: Background) -> None:
    assert "ready" in stack.cloche("logs", "worker", "-n", "5000")
    shown = stack.cloche("logs", "output", "worker", "-n", "5000")
    assert stack.cloche("logs", "worker", "-n", "5000").startswith(shown)  # more may have come
    (last,) = stack.cloche("logs", "beat", "-n", "1").splitlines()
    assert last.startswith("beat ")
    told = stack.cloche("logs", "wroker", code=1)
    assert "did you mean worker" in told
    follower = stack.open("logs", "worker", "-f", "-n", "0")
    try:
        lines = iter(follower.stdout or ())
        stack.cloche("restart", "worker")
        assert any("Warm shutdown" in line for line in lines)
        assert any("ready." in line for line in lines)
    finally:
        follower.terminate()  # not SIGINT: what a script starts with & ignores it
        assert follower.wait(10) == -signal.SIGTERM
        follower.communicate()


def test_wait_returns_when_all_is_ready_and_says_what_is_not(own: Background) -> None:
    told = own.cloche("wait", "--ready", "--timeout", "0.5", code=1)
    assert "nothing runs" in told
    waiting = own.open("wait", "--ready", "--timeout", "60")
    own.cloche("start")
    assert waiting.communicate(timeout=60)[0] == "ready\n"
    assert waiting.returncode == 0
    own.cloche("stop", "beat")
    told = own.cloche("wait", "--ready", "--timeout", "0.5", "beat", code=1)
    assert "beat is stopped" in told
    follower = own.open("logs", "-f")
    own.cloche("stop")
    assert follower.wait(20) == 0, "it ends when nothing runs any more"
    follower.communicate()


def test_another_application_in_the_same_directory_is_refused(stack: Background) -> None:
    told = stack.cloche("start", "-A", "other", code=1)
    assert "runs the application shop" in told
    told = stack.cloche("stop", "nobody", code=1)
    assert "there is no process nobody" in told


def test_a_start_that_fails_is_told_as_in_the_foreground(own: Background) -> None:
    own.environ |= {"CLOCHE_BROKER__EMBEDDED": "auto", "CLOCHE_BROKER__START_TRIES": "1"}
    own.environ["REDIS_URL"] = "redis://127.0.0.1:1/0"
    told = own.cloche("start", code=3)
    assert told.count("error:") == 1
    assert "connection refused" in told
    own.wait_gone()


def test_a_crash_loop_is_shown_with_its_last_lines_and_ended_by_a_start(stack: Background) -> None:
    with broken(stack, "no such module here"):
        stack.main("worker").kill()
        wait_until(lambda: stack.ps()["worker"]["state"] == "crash-loop", "crash loop", 90)
        assert "no such module here" in stack.cloche("ps")
        assert "no such module here" in stack.output_of("cloche")
        assert "was given up" in stack.cloche("wait", "--ready", code=1)
    stack.cloche("start")
    exactly_what_is_declared(stack)


def test_a_foreground_up_is_commanded_from_another_terminal(own: Background) -> None:
    own.environ["CLOCHE_SERVICE__ENABLED"] = "false"
    with own.log_path.open("ab") as log:
        process = subprocess.Popen(
            ["cloche", "up"],
            cwd=own.directory,
            env=own.environ,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
    own.adopt(process)
    own.cloche("wait", "--ready")
    own.cloche("start")
    own.cloche("scale", "worker=2")
    assert len(own.workers()) == 2
    answer = json.loads(own.cloche("stop", "--json"))
    assert all(one["state"] == "stopped" for one in answer["processes"])
    assert process.wait(10) == 0
    own.wait_gone()
