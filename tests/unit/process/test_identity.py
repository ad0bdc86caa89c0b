"""Identity: pid + start time, on real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from cloche.process.identity import Identity


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def test_a_running_process_is_alive(sleeper: subprocess.Popen[bytes]) -> None:
    identity = Identity.of(sleeper.pid, "run")
    assert identity is not None
    assert identity.alive()
    assert identity.instance == "run"


def test_another_process_under_the_same_pid_is_not_it(sleeper: subprocess.Popen[bytes]) -> None:
    identity = Identity.of(sleeper.pid)
    assert identity is not None
    earlier = replace(identity, started=identity.started - 0.01)
    assert not earlier.alive()
    assert not earlier.signal(signal.SIGKILL)
    assert not earlier.signal_group(signal.SIGKILL)
    assert sleeper.poll() is None


def test_a_zombie_is_dead(sleeper: subprocess.Popen[bytes]) -> None:
    identity = Identity.of(sleeper.pid)
    assert identity is not None
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert not identity.alive()
    assert Identity.of(sleeper.pid) is None
    assert Identity.of_child(sleeper.pid) == identity


def test_a_signal_reaches_the_process(sleeper: subprocess.Popen[bytes]) -> None:
    identity = Identity.of(sleeper.pid)
    assert identity is not None
    assert identity.signal(signal.SIGTERM)
    assert sleeper.wait(10) == -signal.SIGTERM
    assert not identity.signal(signal.SIGTERM)


def test_own_is_this_process_and_older_than_now() -> None:
    own = Identity.own()
    assert own == Identity.of(os.getpid())
    assert own.started <= time.clock_gettime(time.CLOCK_BOOTTIME)


def test_a_pid_that_never_was_has_no_identity() -> None:
    assert Identity.of(0) is None
    assert Identity.of(2**22 + 1) is None
