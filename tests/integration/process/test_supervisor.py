"""The supervisor with real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from cloche.backoff import Backoff
from cloche.errors import CrashLoopError, NotReadyError, ProcessError
from cloche.process.run_directory import RunDirectory
from cloche.process.spec import ProcessSpec
from cloche.process.status import ProcessState as State
from cloche.process.supervisor import Supervisor
from tests.integration.process.conftest import Ledger, Stage, gone, now, until

QUICK = Backoff(0.01, 1.0, 0.01)


def _spec(name: str, script: str, **more: object) -> ProcessSpec:
    return ProcessSpec(name=name, command=["sh", "-c", script], **more)  # type: ignore[arg-type]


def _sleeper(name: str, **more: object) -> ProcessSpec:
    return _spec(name, "exec sleep 1000", **more)


def test_processes_start_once_their_needs_are_ready_and_stop_the_other_way_round(
    stage: Stage, ledger: Ledger
) -> None:
    def actor(name: str, *needs: str) -> ProcessSpec:
        command = ledger.actor(name, "notify=0.2")
        return ProcessSpec(name=name, command=command, needs=needs, notify=True)

    async def play(supervisor: Supervisor) -> None:
        assert await supervisor.start()
        assert {status.state for status in supervisor.status()} == {State.READY}
        await supervisor.stop()
        assert {status.state for status in supervisor.status()} == {State.STOPPED}

    stage.run([actor("web", "worker"), actor("worker", "broker"), actor("broker")], play)
    assert ledger.order("started") == ["broker started", "worker started", "web started"]
    assert ledger.order("stopped") == ["web stopped", "worker stopped", "broker stopped"]
    ready = [change.name for change in stage.changes if change.state is State.READY]
    assert ready == ["broker", "worker", "web"]
    assert all(gone(pid) for _, _, pid in ledger.entries)


def test_what_needs_the_same_starts_side_by_side(stage: Stage, ledger: Ledger) -> None:
    """Each of the two is ready only once the other has started."""

    async def both() -> bool:
        return len(ledger.order("started")) == 2

    specs = [
        ProcessSpec(name=name, command=ledger.actor(name), needs=("broker",), ready=both)
        for name in ("a", "b")
    ]

    async def play(supervisor: Supervisor) -> None:
        assert await supervisor.start()

    stage.run([_sleeper("broker"), *specs], play)


def test_readiness_is_polled_and_a_failing_probe_means_not_yet(stage: Stage) -> None:
    asked = 0

    async def probe() -> bool:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise ConnectionRefusedError("not yet")
        return asked > 3

    async def play(supervisor: Supervisor) -> None:
        assert await supervisor.start()
        assert asked == 4

    stage.run([_sleeper("a", ready=probe)], play)


def test_a_word_of_readiness_and_its_status_line_are_heard(stage: Stage, ledger: Ledger) -> None:
    spec = ProcessSpec(name="a", command=ledger.actor("a", "notify=0"), notify=True)

    async def play(supervisor: Supervisor) -> None:
        assert await supervisor.start()
        assert now(supervisor, "a").detail == "at work"
        assert (stage.directory.path / "a.notify").exists()

    stage.run([spec], play)
    assert not (stage.directory.path / "a.notify").exists()


def test_a_process_that_is_not_ready_in_time_is_an_error_with_its_last_lines(
    stage: Stage, ledger: Ledger
) -> None:
    async def never() -> bool:
        raise ConnectionRefusedError("nobody listens")

    late = _spec("late", "echo loading the model; exec sleep 1000", ready=never, ready_timeout=0.5)
    other = ProcessSpec(name="other", command=ledger.actor("other"))

    async def play(supervisor: Supervisor) -> None:
        with pytest.raises(NotReadyError) as caught:
            await supervisor.start()
        text = str(caught.value)
        assert "late was not ready within 0.5 s" in text
        assert "nobody listens" in text
        assert "loading the model" in text
        assert "late.log" in text

    stage.run([late, other], play)
    assert all(gone(pid) for _, _, pid in ledger.entries)


def test_a_command_that_does_not_exist_is_told_at_once(stage: Stage) -> None:
    async def play(supervisor: Supervisor) -> None:
        with pytest.raises(NotReadyError, match="a cannot be started: No such file"):
            await supervisor.start()

    stage.run([ProcessSpec(name="a", command=["/nonexistent/program"])], play)


def test_a_crash_loop_at_the_start_is_an_error_with_the_last_lines(stage: Stage) -> None:
    async def never() -> bool:
        return False

    async def play(supervisor: Supervisor) -> None:
        with pytest.raises(CrashLoopError) as caught:
            await supervisor.start()
        text = str(caught.value)
        assert "a ended 3 times within 60 s" in text
        assert "exit status 7" in text
        assert text.count("no config") == 3

    spec = _spec("a", "echo no config; exit 7", ready=never, restart=QUICK, crash_limit=3)
    stage.run([spec, _sleeper("b")], play)


def test_a_crash_loop_later_is_a_state_while_the_others_go_on(stage: Stage, tmp_path: Path) -> None:
    flag = tmp_path / "broken"
    script = f"test -e {flag} && {{ echo broken; exit 1; }}; exec sleep 1000"

    async def play(supervisor: Supervisor) -> None:
        assert await supervisor.start()
        before = now(supervisor, "b").identity
        flag.touch()
        first = now(supervisor, "a").identity
        assert first is not None
        first.signal(signal.SIGKILL)
        await until(lambda: now(supervisor, "a").state is State.CRASH_LOOP)
        status = now(supervisor, "a")
        assert "broken" in status.last_lines
        assert status.exit_code == 1
        assert status.identity is None
        assert now(supervisor, "b").identity == before
        flag.unlink()
        assert await supervisor.restart("a")
        assert now(supervisor, "a").state is State.READY

    stage.run([_spec("a", script, restart=QUICK, crash_limit=3), _sleeper("b")], play)
    assert stage.states("a").count(State.CRASH_LOOP) >= 1


def test_a_killed_process_comes_back_after_its_back_off(stage: Stage, ledger: Ledger) -> None:
    spec = ProcessSpec(
        name="a",
        command=ledger.actor("a", "family", "escape", "notify=0"),
        notify=True,
        restart=Backoff(0.3, 1.0, 0.3),
    )

    async def play(supervisor: Supervisor) -> None:
        assert await supervisor.start()
        first = now(supervisor, "a").identity
        assert first is not None
        child, far = ledger.pid("a", "child"), ledger.pid("a", "escaped")
        killed = time.monotonic()
        first.signal(signal.SIGKILL)
        await until(lambda: now(supervisor, "a").restarts == 1)
        assert time.monotonic() - killed >= 0.3
        assert gone(child), "what remains of its group is killed"
        assert gone(far), "also what left the group"
        await until(lambda: now(supervisor, "a").state is State.READY)
        assert now(supervisor, "a").identity != first

    stage.run([spec], play)
    states = stage.states("a")
    assert states[:6] == [
        State.WAITING,
        State.STARTING,
        State.READY,
        State.BACKING_OFF,
        State.WAITING,
        State.STARTING,
    ]


def test_a_process_that_ignores_term_is_killed_with_its_group(stage: Stage, ledger: Ledger) -> None:
    spec = ProcessSpec(
        name="a",
        command=ledger.actor("a", "stubborn", "family", "escape", "notify=0"),
        notify=True,
        stop_signals=((signal.SIGTERM, 0.3), (signal.SIGINT, 0.3)),
    )

    async def play(supervisor: Supervisor) -> None:
        assert await supervisor.start()
        await supervisor.stop()

    stage.run([spec], play)
    assert ledger.order("SIGTERM", "SIGINT", "stopped") == ["a SIGTERM", "a SIGINT"]
    assert all(gone(pid) for _, _, pid in ledger.entries)
    assert "did not stop within 0.6 s: killed" in stage.screen.getvalue()


def test_a_stopped_process_is_woken_to_stop_gracefully(stage: Stage, ledger: Ledger) -> None:
    spec = ProcessSpec(name="a", command=ledger.actor("a", "notify=0"), notify=True)

    async def play(supervisor: Supervisor) -> None:
        assert await supervisor.start()
        identity = now(supervisor, "a").identity
        assert identity is not None
        identity.signal(signal.SIGSTOP)
        await supervisor.stop()

    stage.run([spec], play)
    assert ledger.order("stopped") == ["a stopped"]


def test_a_kill_lets_what_keeps_data_write_it_after_the_others_are_gone(
    stage: Stage, ledger: Ledger
) -> None:
    specs = [
        ProcessSpec(
            name="data", command=ledger.actor("data", "notify=0"), notify=True, keeps_data=True
        ),
        ProcessSpec(
            name="a",
            command=ledger.actor("a", "drain=1000", "notify=0"),
            notify=True,
            needs=("data",),
        ),
    ]

    async def play(supervisor: Supervisor) -> None:
        assert await supervisor.start()
        supervisor.kill()
        await asyncio.wait_for(supervisor.run(), 20)

    stage.run(specs, play)
    assert ledger.order("SIGTERM", "stopped") == ["data SIGTERM", "data stopped"]


def test_kill_ends_a_stop_that_takes_long(stage: Stage, ledger: Ledger) -> None:
    spec = ProcessSpec(
        name="a", command=ledger.actor("a", "drain=1000", "escape", "notify=0"), notify=True
    )

    async def play(supervisor: Supervisor) -> None:
        assert await supervisor.start()
        stopping = asyncio.ensure_future(supervisor.stop())
        await until(lambda: ledger.order("SIGTERM"))
        supervisor.kill()
        await asyncio.wait_for(stopping, 20)
        await asyncio.wait_for(supervisor.run(), 20)

    stage.run([spec], play)
    assert all(gone(pid) for _, _, pid in ledger.entries)


def test_a_stop_during_the_start_ends_the_start(stage: Stage, ledger: Ledger) -> None:
    async def never() -> bool:
        return False

    async def play(supervisor: Supervisor) -> None:
        starting = asyncio.ensure_future(supervisor.start())
        await until(lambda: ledger.order("started"))
        await supervisor.stop()
        assert await starting is False

    stage.run([ProcessSpec(name="a", command=ledger.actor("a"), ready=never)], play)
    assert all(gone(pid) for _, _, pid in ledger.entries)


def test_each_child_leads_a_session_of_its_own(stage: Stage) -> None:
    async def play(supervisor: Supervisor) -> None:
        assert await supervisor.start()
        pids = [s.identity.pid for s in supervisor.status() if s.identity]
        assert [os.getsid(pid) for pid in pids] == pids
        assert [os.getpgid(pid) for pid in pids] == pids

    stage.run([_sleeper("a"), _sleeper("b")], play)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_no_descriptor_of_the_launcher_leaks_into_children_or_guard(stage: Stage) -> None:
    def links(pid: int) -> dict[int, str]:
        handles = Path(f"/proc/{pid}/fd")
        return {int(h.name): os.readlink(h) for h in handles.iterdir()}

    async def play(supervisor: Supervisor) -> None:
        assert await supervisor.start()
        for status in supervisor.status():
            assert status.identity is not None
            seen = links(status.identity.pid)
            assert set(seen) == {0, 1, 2}
            assert seen[0] == "/dev/null"
            assert seen[1] == seen[2]
        assert supervisor.guard_pid is not None
        await until(lambda: len(links(supervisor.guard_pid or 0)) >= 9)
        kinds = sorted(link.partition(":")[0] for link in links(supervisor.guard_pid).values())
        logs = str(stage.directory.logs / "guard.log")
        lock = str(stage.directory.path / "up.lock")
        assert kinds == sorted(["/dev/null", logs, logs, lock, "socket", *["pipe"] * 4])

    stage.run([_sleeper(f"s{number}") for number in range(4)], play)


def test_descriptors_do_not_grow_over_restarts(stage: Stage) -> None:
    async def play(supervisor: Supervisor) -> None:
        assert await supervisor.start()
        assert await supervisor.restart("a")
        before = len(os.listdir("/dev/fd"))
        for _ in range(10):
            assert await supervisor.restart("a")
        assert len(os.listdir("/dev/fd")) <= before

    stage.run([_sleeper("a")], play)


def test_a_one_shot_process_that_ended_well_serves_those_that_need_it(stage: Stage) -> None:
    async def play(supervisor: Supervisor) -> None:
        assert await supervisor.start()
        await until(lambda: now(supervisor, "migrate").state is State.STOPPED)
        assert now(supervisor, "web").state is State.READY
        assert now(supervisor, "migrate").restarts == 0

    specs = [_spec("migrate", "exit 0", keep=False), _sleeper("web", needs=("migrate",))]
    stage.run(specs, play)


def test_a_one_shot_process_that_failed_is_an_error(stage: Stage) -> None:
    async def never() -> bool:
        return False

    async def play(supervisor: Supervisor) -> None:
        with pytest.raises(NotReadyError, match="migrate ended before it was ready"):
            await supervisor.start()

    specs = [_spec("migrate", "exit 3", keep=False, ready=never), _sleeper("w", needs=("migrate",))]
    stage.run(specs, play)


def test_processes_are_added_and_removed_while_others_run(stage: Stage) -> None:
    async def play(supervisor: Supervisor) -> None:
        assert await supervisor.start()
        assert await supervisor.add([_sleeper("worker-2", needs=("broker",))])
        assert now(supervisor, "worker-2").state is State.READY
        record = stage.directory.record()
        assert record is not None
        assert [child.name for child in record.children] == ["broker", "worker-1", "worker-2"]
        with pytest.raises(ProcessError, match="needed by worker-1, worker-2"):
            await supervisor.remove("broker")
        await supervisor.remove("worker-2")
        assert [status.name for status in supervisor.status()] == ["broker", "worker-1"]
        with pytest.raises(ProcessError, match="there is no process worker-2"):
            await supervisor.remove("worker-2")

    stage.run([_sleeper("broker"), _sleeper("worker-1", needs=("broker",))], play)


def test_only_what_is_chosen_starts_with_what_it_needs_and_the_rest_may_be_begun(
    stage: Stage,
) -> None:
    async def play(supervisor: Supervisor) -> None:
        assert await supervisor.start(only=("worker",))
        assert now(supervisor, "broker").state is State.READY
        assert now(supervisor, "web").state is State.STOPPED
        first = now(supervisor, "worker").identity
        assert await supervisor.begin(("worker", "web"))
        assert now(supervisor, "web").state is State.READY
        assert now(supervisor, "worker").identity == first
        with pytest.raises(ProcessError, match="broker is needed by worker"):
            await supervisor.halt(("broker", "web"))
        await supervisor.halt(("web", "worker"))
        await supervisor.halt(("broker",))
        assert {status.state for status in supervisor.status()} == {State.STOPPED}
        assert await supervisor.begin(("worker",))
        assert now(supervisor, "broker").state is State.READY

    needs = ("broker",)
    stage.run([_sleeper("broker"), _sleeper("worker", needs=needs), _sleeper("web")], play)


def test_a_restart_may_bring_another_command_and_ends_a_crash_loop(stage: Stage) -> None:
    broken = _spec("worker", "exit 3", notify=True, restart=QUICK, crash_limit=2)

    async def play(supervisor: Supervisor) -> None:
        assert await supervisor.start(only=())
        with pytest.raises(CrashLoopError):
            await supervisor.begin(("worker",))
        assert now(supervisor, "worker").state is State.CRASH_LOOP
        assert await supervisor.restart("worker", _sleeper("worker"))
        assert now(supervisor, "worker").state is State.READY
        before = now(supervisor, "worker").identity
        assert await supervisor.restart("worker", now=True)
        assert now(supervisor, "worker").identity != before

    stage.run([broken], play)


def test_a_state_file_that_cannot_be_written_stops_nobody(stage: Stage, ledger: Ledger) -> None:
    stage.directory.state_path.mkdir()

    async def play(supervisor: Supervisor) -> None:
        assert await supervisor.start()
        stage.directory.state_path.rmdir()
        await supervisor.stop()

    stage.run([ProcessSpec(name="a", command=ledger.actor("a", "notify=0"), notify=True)], play)
    assert "cannot write" in stage.screen.getvalue()
    assert ledger.order("stopped") == ["a stopped"]


def test_a_second_supervisor_in_the_same_run_directory_is_refused(stage: Stage) -> None:
    async def play(supervisor: Supervisor) -> None:
        assert await supervisor.start()
        second = Supervisor(
            [_sleeper("a")],
            run_directory=RunDirectory(stage.directory.path),
            output=supervisor._output,
        )
        with pytest.raises(ProcessError, match=f"pid {os.getpid()} holds it"):
            await second.start()
        assert now(supervisor, "a").state is State.READY

    stage.run([_sleeper("a")], play)
    assert RunDirectory(stage.directory.path).lock(), "free again, the guard has let go"


def test_a_flood_of_output_neither_blocks_the_child_nor_fills_memory(stage: Stage) -> None:
    size = 100 * 1024**2
    script = f"yes 0123456789012345678901234567890123456789 | head -c {size}; echo; echo done"
    before = _memory()
    peak = 0

    async def play(supervisor: Supervisor) -> None:
        nonlocal peak
        assert await supervisor.start()
        while now(supervisor, "a").state is not State.STOPPED:
            peak = max(peak, _memory())
            await asyncio.sleep(0.02)
        assert now(supervisor, "a").last_lines[-1] == "done"

    with open(os.devnull, "w") as stage.screen:  # type: ignore[assignment]
        stage.run([_spec("a", script, keep=False)], play)
    assert peak - before < 40 * 1024**2
    kept = sum(path.stat().st_size for path in stage.directory.logs.glob("a.log*"))
    assert 30 * 1024**2 < kept <= 40 * 1024**2 + size // 100


def _memory() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
