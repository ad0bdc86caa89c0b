"""kill -9 of the launcher, of the guard, of both: a real launcher in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cloche.process import table
from cloche.process.identity import Identity
from cloche.process.run_directory import RunDirectory
from cloche.process.stopping import kill_carriers
from cloche.testing import wait_until
from tests.integration.process.conftest import Ledger, gone

LAUNCHER = str(Path(__file__).with_name("launcher.py"))


@dataclass
class Launched:
    """A running launcher, its guard, and how to find what it started."""

    popen: subprocess.Popen[bytes]
    guard: Identity
    instance: str
    path: Path

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait(10)

    def survivors(self) -> set[int]:
        return {carrier.row.pid for carrier in table.carriers(self.instance)}

    def guard_log(self) -> str:
        return (self.path / "logs" / "guard.log").read_text()


class Launches:
    """Starts launchers in one run directory and cleans up after the test."""

    def __init__(self, path: Path, ledger: Ledger) -> None:
        self.path = path
        self._ledger = ledger
        self._all: list[Launched] = []

    def __call__(self, *words: str) -> Launched:
        command = [sys.executable, LAUNCHER, str(self.path), str(self._ledger.path), *words]
        with (self.path.parent / "launcher.out").open("ab") as errors:
            popen = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
        assert popen.stdout is not None
        word, guard, instance = popen.stdout.readline().decode().split()
        popen.stdout.close()
        assert word == "ready"
        identity = Identity.of(int(guard))
        assert identity is not None
        self._all.append(Launched(popen, identity, instance, self.path))
        return self._all[-1]

    def close(self) -> None:
        for launched in self._all:
            launched.kill()
            launched.guard.signal(signal.SIGKILL)
            kill_carriers(launched.instance)


@pytest.fixture
def launch(tmp_path: Path, ledger: Ledger) -> Iterator[Launches]:
    launches = Launches(tmp_path / "run", ledger)
    yield launches
    launches.close()


def _all_gone(ledger: Ledger) -> bool:
    return all(gone(pid) for _, _, pid in ledger.entries)


@pytest.mark.parametrize("words", [(), ("no-death-signal",)])
def test_a_killed_launcher_leaves_nothing_and_the_broker_stops_last(
    launch: Launches, ledger: Ledger, words: tuple[str, ...]
) -> None:
    launched = launch(*words)
    started = {pid for _, _, pid in ledger.entries}
    assert len(started) == 5
    launched.kill()
    wait_until(lambda: not launched.guard.alive())
    assert _all_gone(ledger)
    assert launched.survivors() == set()
    # The worker drained, printing into a pipe whose launcher is gone, while the broker lived.
    assert ledger.order("stopped") == ["worker stopped", "broker stopped"]
    whats = [f"{name} {what}" for name, what, _ in ledger.entries]
    assert whats.index("worker stopped") < whats.index("broker SIGTERM")
    asked = sorted(ledger.order("SIGTERM"))
    # With the kernel's own signal once per thread of the launcher that dies; else once.
    expected = ["broker SIGTERM", "stubborn SIGTERM", "worker SIGTERM"]
    assert (asked if words else sorted(set(asked))) == expected
    assert asked.count("broker SIGTERM") == 1
    by_guard = [name for name in ("worker", "broker") if f"{name} (pid" in launched.guard_log()]
    assert by_guard == (["worker", "broker"] if words else ["broker"])
    assert "draining" in (launched.path / "logs" / "worker.log").read_text()
    assert "nothing is left" in launched.guard_log()
    assert not (launched.path / "state.json").exists()


def test_the_next_start_waits_for_the_guard_and_works(launch: Launches, ledger: Ledger) -> None:
    first = launch()
    first.kill()
    second = launch()
    assert first.survivors() == set()
    assert "nothing is left" in first.guard_log()
    assert ledger.order("stopped")[-1] == "broker stopped"
    second.popen.terminate()
    assert second.popen.wait(20) == 0
    assert _all_gone(ledger)


def test_a_terminated_launcher_stops_all_and_dismisses_its_guard(
    launch: Launches, ledger: Ledger
) -> None:
    launched = launch()
    launched.popen.terminate()
    assert launched.popen.wait(20) == 0
    assert not launched.guard.alive()
    assert _all_gone(ledger)
    assert ledger.order("stopped") == ["worker stopped", "broker stopped"]
    assert launched.guard_log() == ""


def test_a_killed_guard_is_replaced_and_the_new_one_does_its_work(
    launch: Launches, ledger: Ledger
) -> None:
    launched = launch()
    launched.guard.signal(signal.SIGKILL)
    fresh = Identity(wait_until(lambda: _guard_of(launched)), 0.0)
    assert fresh.pid != launched.guard.pid
    assert not _all_gone(ledger)
    launched.kill()
    wait_until(lambda: gone(fresh.pid))
    assert _all_gone(ledger)
    assert ledger.order("stopped") == ["worker stopped", "broker stopped"]
    assert "draining" in (launched.path / "logs" / "worker.log").read_text()


def test_the_guard_ignores_what_a_terminal_or_service_manager_sends(launch: Launches) -> None:
    launched = launch()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        launched.guard.signal(number)
    launched.kill()
    wait_until(lambda: not launched.guard.alive())
    assert launched.survivors() == set()


def test_after_launcher_and_guard_are_killed_the_next_start_reclaims(
    launch: Launches, ledger: Ledger
) -> None:
    first = launch("no-death-signal", "silent")
    _kill_both(first)
    left = RunDirectory(first.path).leftovers()
    assert [found.name for found in left[:3]] == ["broker", "worker", "stubborn"]
    assert {found.identity.pid for found in left} == {pid for _, _, pid in ledger.entries}
    second = launch()
    assert first.survivors() == set()
    assert ledger.order("stopped") == ["worker stopped", "broker stopped"]
    second.popen.terminate()
    assert second.popen.wait(20) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_without_launcher_and_guard_the_kernel_still_stops_all_but_the_broker(
    launch: Launches, ledger: Ledger
) -> None:
    launched = launch("silent")
    _kill_both(launched)
    wait_until(lambda: ledger.order("stopped") == ["worker stopped"])
    wait_until(lambda: gone(ledger.pid("worker", "started")))
    assert not gone(ledger.pid("broker", "started"))


def test_what_was_spawned_but_not_yet_recorded_is_found(launch: Launches, ledger: Ledger) -> None:
    """As if the launcher had been killed between the spawn and the state file."""
    launched = launch("no-death-signal")
    directory = RunDirectory(launched.path)
    record = directory.record()
    assert record is not None
    text = directory.state_path.read_text()
    for child in record.children:
        assert child.identity is not None
        text = text.replace(f'"pid": {child.identity.pid},', '"pid": 4194305,')
    directory.state_path.write_text(text)
    launched.kill()
    wait_until(lambda: not launched.guard.alive())
    assert _all_gone(ledger)
    assert ledger.order("stopped") == ["worker stopped", "broker stopped"]


def _kill_both(launched: Launched) -> None:
    """The guard first would be replaced, so the launcher must not run between the two."""
    launched.popen.send_signal(signal.SIGSTOP)
    launched.guard.signal(signal.SIGKILL)
    launched.kill()
    wait_until(lambda: not launched.guard.alive())


def _guard_of(launched: Launched) -> int:
    """The pid of a child of the launcher that does not carry the instance, and lives."""
    ours = {row.pid for row in table.rows() if row.parent == launched.popen.pid}
    return next(iter(ours - launched.survivors() - {launched.guard.pid}), 0)
