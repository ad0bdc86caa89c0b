"""Reading log files from their end and across rotation."""

from __future__ import annotations

from pathlib import Path

from cloche.process.logfile import LogFile, LogFileTail, logs_in


def test_the_last_lines_and_then_what_is_added(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"".join(b"%d\n" % n for n in range(50_000)) + b"half")
    tail = LogFileTail("a", path)
    assert tail.last(3) == [b"49997", b"49998", b"49999"]
    assert tail.news() == []
    with path.open("ab") as file:
        file.write(b" and half\nnext\n")
    assert tail.news() == [b"half and half", b"next"]


def test_no_line_is_lost_when_the_file_is_rotated(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "a.log", limit=100)
    tail = LogFileTail("a", tmp_path / "a.log")
    assert tail.last(10) == []
    seen: list[bytes] = []
    for number in range(40):
        log.write(b"line %d\n" % number)
        if number % 5 == 0:
            seen += tail.news()
    seen += tail.news()
    assert seen == [b"line %d" % number for number in range(40)]


def test_more_lines_than_there_are_and_none_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"one\ntwo\n")
    assert LogFileTail("a", path).last(10) == [b"one", b"two"]
    silent = LogFileTail("a", path)
    assert silent.last(0) == []
    assert silent.news() == []
    assert LogFileTail("b", tmp_path / "b.log").last(5) == []
    (tmp_path / "empty.log").touch()
    assert list(logs_in(tmp_path)) == ["a"]
    assert logs_in(tmp_path / "nowhere") == {}
