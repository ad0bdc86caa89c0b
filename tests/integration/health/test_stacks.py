"""The stacks of a hung worker are kept, by py-spy where that is allowed and without it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloche.launch.watchdog import dump_stacks
from cloche.process import table
from cloche.process.heartbeat import DIRECTORY, Heartbeat, heartbeat_path
from cloche.process.identity import Identity
from cloche.testing import wait_until

NODE = "one@here"
SLEEPER = """
import faulthandler, signal, sys, time
faulthandler.register(signal.SIGUSR2, open(sys.argv[1], "a"), all_threads=True)

def sleeps_on_purpose():
    print("ready", flush=True)
    time.sleep(1000)

sleeps_on_purpose()
"""


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[Heartbeat]:
    (tmp_path / DIRECTORY).mkdir(parents=True)
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    own_word = heartbeat_path(tmp_path, NODE, ".stacks")
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "sleeper.py"), str(own_word)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        now = time.monotonic()
        yield Heartbeat(
            node=NODE,
            pid=process.pid,
            started=Identity.of_child(process.pid).started,
            boot=table.boot_id(),
            at=now,
            turned=now,
            connected=True,
            queues=("default",),
            pool="prefork",
            slots=1,
            active=0,
            reserved=0,
            processed=0,
        )
        process.kill()


def py_spy_may(pid: int) -> bool:
    """Whether the system lets one process read another here (ptrace(2))."""
    command = [str(Path(sys.executable).with_name("py-spy")), "dump", "--pid", str(pid)]
    return subprocess.run(command, capture_output=True).returncode == 0


def test_py_spy_tells_where_it_is_installed_and_allowed(
    sleeper: Heartbeat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    path, stacks = dump_stacks(tmp_path, sleeper)
    assert path.read_text() == stacks
    assert "sleeps_on_purpose" in stacks
    assert stacks.startswith(f"Process {sleeper.pid}") is py_spy_may(sleeper.pid)


@pytest.mark.parametrize("stopped", [False, True])
def test_without_it_the_process_tells_itself(
    sleeper: Heartbeat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    monkeypatch.setenv("PATH", "")
    if stopped:
        assert sleeper.identity.signal(signal.SIGSTOP)
    _path, stacks = dump_stacks(tmp_path, sleeper, stopped=stopped)
    assert "sleeps_on_purpose" in stacks
    assert "most recent call first" in stacks


def test_one_that_has_gone_leaves_an_empty_file(sleeper: Heartbeat, tmp_path: Path) -> None:
    sleeper.identity.signal(signal.SIGKILL)
    wait_until(lambda: not sleeper.identity.alive(), "its end")
    path, stacks = dump_stacks(tmp_path, sleeper)
    assert (stacks, path.read_text()) == ("", "")
