"""Lines on disk: in order, whole, bounded, and never lost with their process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cloche.errors import SpoolFullError
from cloche.logs.write.counts import Dropped, LogDirectory
from cloche.logs.write.spool import SEGMENT, RecordSpool, kept, lines_of, orphans
from cloche.testing import wait_until


def spool(directory: Path, limit: int = 10_000_000) -> RecordSpool:
    return RecordSpool(directory, limit=limit, fsync="interval")


def drained(one: RecordSpool) -> list[bytes]:
    lines = []
    for segment in one.sealed():
        lines += lines_of(segment)[0]
        one.done(segment)
    return lines


def test_lines_come_back_in_order_over_many_segments(tmp_path: Path) -> None:
    own = spool(tmp_path)
    lines = [b"%d %s\n" % (number, b"x" * 1000) for number in range(1500)]
    for line in lines:
        own.append(line)
    assert kept(tmp_path).segments >= 2
    assert drained(own) == lines
    assert not own.pending
    assert kept(tmp_path).bytes == 0


def test_what_is_not_sent_stays_first(tmp_path: Path) -> None:
    own = spool(tmp_path)
    own.append(b"1\n")
    for _ in own.sealed():
        pass  # the broker is away
    own.append(b"2\n")
    assert drained(own) == [b"1\n", b"2\n"]


def test_what_is_appended_while_it_is_sent_comes_last(tmp_path: Path) -> None:
    own = spool(tmp_path)
    own.append(b"1\n")
    seen = []
    for segment in own.sealed():
        seen += lines_of(segment)[0]
        if len(seen) < 3:
            own.append(b"%d\n" % (len(seen) + 1))
        own.done(segment)
    assert seen == [b"1\n", b"2\n", b"3\n"]


def test_the_cap_holds_for_all_processes_together(tmp_path: Path) -> None:
    first = spool(tmp_path, limit=SEGMENT)
    first.append(b"x" * (SEGMENT - 100) + b"\n")
    second = spool(tmp_path, limit=SEGMENT)
    with pytest.raises(SpoolFullError):
        second.append(b"y" * 200)
    second.append(b"y\n")
    assert drained(first)
    wait_until(lambda: _fits(second, b"y" * 200), "room", 30)


def _fits(own: RecordSpool, lines: bytes) -> bool:
    try:
        own.append(lines)
    except SpoolFullError:
        return False
    return True


def test_a_disk_that_is_full_takes_no_half_lines(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys; from pathlib import Path;"
        "from cloche.logs.write.spool import RecordSpool;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "own = RecordSpool(Path(sys.argv[1]), limit=10**9, fsync='never'); own.append(b'1\\n');"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "try: own.append(b'2' * 200 + b'\\n'); sys.exit('written')\n"
        "except OSError: own.append(b'3\\n')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    [drawer] = orphans(tmp_path)
    assert lines_of(drawer.segments()[0]) == ([b"1\n", b"3\n"], False)
    drawer.release()


def test_what_a_process_left_that_ended_is_found_once(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from cloche.logs.write.spool import RecordSpool;"
        "spool = RecordSpool(Path(sys.argv[1]), limit=10**9, fsync='never');"
        "spool.append(b'1\\n2\\n'); os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    living = spool(tmp_path)
    living.append(b"3\n")
    assert (kept(tmp_path).living, kept(tmp_path).ended) == (1, 1)
    [drawer] = orphans(tmp_path)
    assert list(orphans(tmp_path)) == [], "somebody has it"
    assert lines_of(drawer.segments()[0]) == ([b"1\n", b"2\n"], False)
    drawer.segments()[0].unlink()
    drawer.remove()
    assert drained(living) == [b"3\n"]
    living.close()
    assert not list(tmp_path.iterdir())


def test_a_torn_line_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "1.jsonl"
    path.write_bytes(b"1\n2\n3")
    assert lines_of(path) == ([b"1\n", b"2\n"], True)


def test_a_forked_child_leaves_the_spool_of_its_parent_alone(tmp_path: Path) -> None:
    own = spool(tmp_path)
    own.append(b"parent\n")
    child = os.fork()
    if child == 0:
        own.abandon()
        own.append(b"child\n")
        os._exit(0)
    os.waitpid(child, 0)
    [theirs] = orphans(tmp_path)
    assert lines_of(theirs.segments()[0])[0] == [b"child\n"]
    theirs.release()
    assert drained(own) == [b"parent\n"]


def test_drops_of_all_processes_are_added_up(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from cloche.logs.write.counts import LogDirectory;"
        "[LogDirectory(Path(sys.argv[1])).add_dropped({'broker away': 1}) for _ in range(50)]"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    for process in [subprocess.Popen(command) for _ in range(3)]:
        assert process.wait(60) == 0
    place = LogDirectory(tmp_path)
    place.add_dropped({"spool full": 7})
    found = place.dropped()
    assert {reason: one.count for reason, one in found.items()} == {
        "broker away": 150,
        "spool full": 7,
    }
    assert isinstance(found["spool full"], Dropped)


def test_the_fallback_is_what_was_said_last(tmp_path: Path) -> None:
    place = LogDirectory(tmp_path)
    assert place.mode("spool") == "spool"
    place.set_mode("direct")
    assert LogDirectory(tmp_path).mode("spool") == "direct"
    place.set_mode(None)
    assert place.mode("drop") == "drop"
