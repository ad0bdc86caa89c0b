"""kill -9 of every part of a stack in the background while numbered tasks flow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cloche.testing import wait_until
from tests.acceptance.background import PUBLISH, Background, numbered

#: Numbered tasks per fault; each takes a hundredth of a second and more.
SHORT, LONG = 200, 2000
#: Seconds; tests/acceptance/background.py sets it.
LEASE = 3.0
SIZES = pytest.mark.parametrize("tasks", [SHORT, pytest.param(LONG, marks=pytest.mark.long)])


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Background]:
    made = Background(
        tmp_path / "project",
        environ={
            "CLOCHE_BROKER__FSYNC": "always",
            "CLOCHE_STOP__SOFT": "1",
            "CLOCHE_STOP__GRACE": "3",
            "CLOCHE_SERVICE__ENABLED": "false",
        },
    )
    yield made
    made.close()


def publishing(stack: Background, first: int, last: int) -> subprocess.Popen[bytes]:
    """Numbered tasks from a process of its own, while faults happen."""
    return subprocess.Popen(
        [sys.executable, "-c", PUBLISH, str(first), str(last), "0.01"],
        cwd=stack.directory,
        env=stack.environ,
    )


def kill(stack: Background, victim: str) -> int:
    """kill -9; the pid it had."""
    if victim == "pool child":
        child = psutil.Process(stack.main("worker").pid).children()[0]
        child.kill()
        return int(child.pid)
    main = stack.main(victim)
    main.kill()
    return int(main.pid)


def numbers(stack: Background) -> set[int]:
    return set(numbered(stack.written()))


@SIZES
def test_whatever_is_killed_comes_back_and_no_task_is_lost(stack: Background, tasks: int) -> None:
    stack.cloche("start", "--all")
    launcher = stack.launchers()[0].pid
    for number, victim in enumerate(("worker", "pool child", "dashboard", "broker")):
        first, last = number * tasks, (number + 1) * tasks
        publisher = publishing(stack, first, last)
        wait_until(lambda first=first: len(stack.written()) > first + tasks // 10, "tasks to flow")  # type: ignore[misc]
        before = numbers(stack)
        pid = kill(stack, victim)
        # Tasks are taken in their order: what is missing below the last one written was in
        # flight. Rows 1 to 3 of the fault matrix: it runs again within the lease and 5 s.
        held = set(range(max(before))) - before
        wait_until(lambda held=held: held <= numbers(stack), f"{held} after {victim}", LEASE + 5)  # type: ignore[misc]
        wait_until(lambda pid=pid: not psutil.pid_exists(pid), "its end")  # type: ignore[misc]
        assert publisher.wait(120) == 0, f"{victim}: a publish failed"
        stack.wait_counted(last)
        stack.cloche("wait", "--ready")
    assert stack.launchers()[0].pid == launcher
    assert len(stack.workers()) == 1
    stack.cloche("stop")
    stack.wait_gone()
    done = [int(line) for line in stack.written()]
    # At most what ran at the fault ran twice: two of a killed worker and of a killed broker,
    # one of a killed pool process.
    assert len(done) - len(set(done)) <= 5


@SIZES
def test_a_killed_launcher_is_cleaned_up_after_and_the_next_start_goes_on(
    stack: Background, tasks: int
) -> None:
    stack.cloche("start")
    stack.publish(0, tasks, 0.01)
    stack.send("shop.family", 0.1)
    wait_until(
        lambda: "family" in stack.written() and len(sleepers(stack)) == 2, "grandchildren", 60
    )
    stack.publish(tasks, 2 * tasks, 0.01)
    stack.launchers()[0].kill()
    stack.wait_gone()
    stack.cloche("start")
    stack.wait_counted(2 * tasks)
    stack.cloche("stop")
    stack.wait_gone()


def test_a_killed_worker_takes_its_tasks_grandchildren_with_it(stack: Background) -> None:
    stack.cloche("start")
    stack.send("shop.family", 60)
    wait_until(lambda: len(sleepers(stack)) == 2, "grandchildren")
    first = {process.pid for process in sleepers(stack)}
    stack.main("worker").kill()
    wait_until(lambda: stack.written().count("family") == 2, "the task elsewhere", 60)
    wait_until(lambda: not first & {one.pid for one in sleepers(stack)}, "the first ones' end")
    stack.cloche("stop")
    stack.wait_gone()


def sleepers(stack: Background) -> list[psutil.Process]:
    found = []
    for process in stack.processes():
        try:
            if process.cmdline()[:1] == ["sleep"]:
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_a_pid_that_came_round_again_is_not_taken_for_ours(stack: Background) -> None:
    """A state file of a killed launcher whose numbers now belong to somebody else."""
    stack.cloche("start", "beat")
    state = stack.directory / ".cloche" / "state.json"
    lock = stack.directory / ".cloche" / "up.lock"
    record, owner = json.loads(state.read_text()), json.loads(lock.read_text())
    stack.cloche("stop")
    stack.wait_gone()
    with subprocess.Popen(
        ["sleep", "1000"], cwd="/", start_new_session=True, env={"PATH": os.defpath}
    ) as stranger:
        try:
            record["launcher"]["pid"] = stranger.pid
            for child in record["children"]:
                if child["identity"]:
                    child["identity"]["pid"] = stranger.pid
            state.write_text(json.dumps(record))
            lock.write_text(json.dumps({**owner, "pid": stranger.pid}))
            assert stack.cloche("stop") == "nothing runs\n"
            assert stranger.poll() is None
            state.write_text(json.dumps(record))
            stack.cloche("start", "beat")
            stack.cloche("stop")
            assert stranger.poll() is None
        finally:
            stranger.kill()
