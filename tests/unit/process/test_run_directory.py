"""The run directory: lock, socket paths, state file."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cloche.errors import ProcessError
from cloche.process.identity import Identity
from cloche.process.record import ChildRecord, RunRecord
from cloche.process.run_directory import RunDirectory


def test_it_is_private_and_makes_its_parents(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "a" / "b")
    assert directory.path.stat().st_mode & 0o777 == 0o700
    assert directory.logs.is_dir()


def test_a_place_that_cannot_be_a_directory_is_refused_in_plain_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ProcessError, match="cannot be the run directory"):
        RunDirectory(tmp_path / "file" / "run")


def test_the_second_launcher_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    first = RunDirectory(tmp_path)
    assert first.lock()
    assert not first.lock()
    with pytest.raises(ProcessError, match=rf"pid {os.getpid()} holds it since 20\d\d-"):
        RunDirectory(tmp_path).lock()
    first.unlock()
    second = RunDirectory(tmp_path)
    assert second.lock()
    second.unlock()


def test_a_lock_held_for_a_dead_launcher_is_waited_for(tmp_path: Path) -> None:
    """As by a guard that still cleans up: the file is locked, its owner is dead."""
    script = (
        "import sys, subprocess; from pathlib import Path;"
        "from cloche.process.run_directory import RunDirectory;"
        f"d = RunDirectory(Path({str(tmp_path)!r})); d.lock();"
        "subprocess.Popen(['sleep', '0.5'], pass_fds=(d.lock_fd,))"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    directory = RunDirectory(tmp_path)
    with pytest.raises(ProcessError, match="still being cleaned up"):
        directory.lock(patience=0.05)
    assert directory.lock(patience=20)
    directory.unlock()


def test_a_short_path_keeps_its_sockets_inside(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    assert directory.socket_path("s") == tmp_path / "s"


def test_sockets_of_a_deep_directory_can_be_bound_and_are_private(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    path = RunDirectory(deep).socket_path("broker.sock")
    assert len(os.fsencode(path)) < 104
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert RunDirectory(deep).socket_path("broker.sock") == path
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
    path.unlink()
    path.parent.rmdir()


def test_somebody_elses_directory_is_not_used_for_sockets(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    directory = RunDirectory(deep)
    place = directory.socket_path("s").parent
    place.rmdir()
    place.symlink_to(tmp_path)
    try:
        with pytest.raises(ProcessError, match="belongs to somebody else"):
            directory.socket_path("s")
    finally:
        place.unlink()


def test_the_state_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    child = ChildRecord("a", ("sleep", "1"), 2, ((15, 45.0), (3, 5.0)), 15, Identity(7, 1.25, "i"))
    directory.save([child])
    record = directory.record()
    assert record is not None
    assert record.children == (child,)
    assert record.launcher.pid == os.getpid()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"instance": "x"}'])
def test_a_damaged_state_file_is_no_state(tmp_path: Path, text: str) -> None:
    directory = RunDirectory(tmp_path)
    directory.state_path.write_text(text)
    assert directory.record() is None
    assert directory.leftovers() == ()


def test_identities_of_an_earlier_boot_are_gone(tmp_path: Path) -> None:
    own = Identity.own("x")
    path = tmp_path / "state.json"
    RunRecord("x", own, 0.0, (ChildRecord("a", ("a",), 0, (), None, own),), "other").write(path)
    assert RunDirectory(tmp_path).leftovers() == ()


def test_a_living_launcher_leaves_no_leftovers(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    parent = Identity.of(os.getppid(), "x")
    own = Identity.own("x")
    record = RunRecord("x", own, 0.0, (ChildRecord("a", ("a",), 0, (), None, parent),), "")
    assert record.launcher.alive()
    directory.save(record.children)
    assert directory.leftovers() == ()
