"""Stopping processes that are not our children: nobody else of their group is touched."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from cloche.process.identity import Identity
from cloche.process.unsupervised import descendants, stop_unsupervised
from cloche.testing import wait_until
from tests.integration.process.conftest import Ledger, gone


@pytest.fixture
def job(ledger: Ledger) -> Iterator[subprocess.Popen[bytes]]:
    """A group as a terminal job has it: a shell, a neighbour, and the process in question."""
    command = " ".join(map(repr, ledger.actor("main", "family", "escape")))
    process = subprocess.Popen(
        ["sh", "-c", f"sleep 1000 & echo $!; {command} & wait"],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    yield process
    process.kill()
    process.wait()
    for _, _, pid in ledger.entries:
        if (left := Identity.of(pid)) is not None:
            left.signal(signal.SIGKILL)
    assert process.stdout is not None
    process.stdout.close()


def _main(ledger: Ledger) -> Identity:
    found = Identity.of(ledger.pid("main", "started"))
    assert found is not None
    return found


def test_it_is_asked_and_then_its_own_children_go_and_nobody_elses(
    job: subprocess.Popen[bytes], ledger: Ledger
) -> None:
    assert job.stdout is not None
    neighbour = int(job.stdout.readline())
    main = _main(ledger)
    children = {ledger.pid("main", "child"), ledger.pid("main", "escaped")}
    assert {one.pid for one in descendants(main)} == children
    assert stop_unsupervised(main, ((signal.SIGTERM, 10.0),), print)
    assert ledger.order("SIGTERM", "stopped") == ["main SIGTERM", "main stopped"]
    assert all(gone(pid) for pid in children)
    assert not gone(neighbour)
    os.kill(neighbour, signal.SIGKILL)


def test_one_that_will_not_go_is_killed_also_when_it_was_stopped(ledger: Ledger) -> None:
    process = subprocess.Popen(ledger.actor("main", "stubborn", "family"))
    try:
        main = _main(ledger)
        child = ledger.pid("main", "child")
        process.send_signal(signal.SIGSTOP)
        said: list[str] = []
        assert stop_unsupervised(main, ((signal.SIGTERM, 0.3),), said.append), "a zombie is gone"
        assert said == [f"pid {main.pid} did not stop: killed"]
        wait_until(lambda: gone(child))
    finally:
        process.kill()
        process.wait()
