"""The one log stream, fed through real pipes."""

from __future__ import annotations

import asyncio
import io
import os
import threading
from pathlib import Path

import pytest

from cloche.process.logfile import LogFile
from cloche.process.output import Output, Screen


def _shown(chunks: list[bytes], *, logs: Path, colour: bool = False) -> tuple[str, Output]:
    """What the stream shows of a process that printed ``chunks`` and ended."""
    stream = io.StringIO()

    async def feed() -> Output:
        output = Output(stream, logs=logs, colour=colour)
        reading, writing = os.pipe()
        output.attach("a", reading)
        await asyncio.to_thread(_write, writing, chunks)
        output.detach("a")
        output.close()
        return output

    output = asyncio.run(feed())
    return stream.getvalue(), output


def _write(handle: int, chunks: list[bytes]) -> None:
    for chunk in chunks:
        view = memoryview(chunk)
        while view:
            view = view[os.write(handle, view) :]
    os.close(handle)


def test_lines_carry_the_padded_name(tmp_path: Path) -> None:
    text, output = _shown([b"one\ntw", b"o\nlast, without newline"], logs=tmp_path)
    assert text == "a      │ one\na      │ two\na      │ last, without newline\n"
    assert output.tail("a") == ("one", "two", "last, without newline")


def test_bytes_that_are_not_utf8_and_controls_are_shown_escaped_and_logged_raw(
    tmp_path: Path,
) -> None:
    raw = b"caf\xe9 \xff\x00 \x1b[31mred\x1b[0m \x08 \x1b[2J\x1b]0;t\x07 \xc2\x9bK\n"
    text, _ = _shown([raw], logs=tmp_path)
    assert (
        text
        == "a      │ caf\\xe9 \\xff\\x00 \x1b[31mred\x1b[0m \\x08 \\x1b[2J\\x1b]0;t\\x07 \\x9bK\n"
    )
    assert (tmp_path / "a.log").read_bytes() == raw


def test_a_megabyte_without_newline_is_shown_in_pieces_and_logged_whole(tmp_path: Path) -> None:
    raw = b"x" * 2**20 + b"end\n"
    text, output = _shown([raw], logs=tmp_path)
    assert "".join(line.partition("│ ")[2] for line in text.splitlines()) == "x" * 2**20 + "end"
    assert max(map(len, text.splitlines())) < 20_000
    assert max(map(len, output.tail("a"))) <= 2000
    assert (tmp_path / "a.log").read_bytes() == raw


def test_a_progress_bar_shows_as_a_terminal_would(tmp_path: Path) -> None:
    text, _ = _shown([b"10 %\r20 %\r30 %\r\nwindows\r\n"], logs=tmp_path)
    assert text == "a      │ 30 %\na      │ windows\n"


def test_colour_only_where_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, _ = _shown([b"hello\n"], logs=tmp_path, colour=True)
    assert text.startswith("\x1b[36ma      │ \x1b[0mhello")
    ours, theirs = os.openpty()
    with open(theirs, "w") as terminal:
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.delenv("NO_COLOR", raising=False)
        assert _first_bytes(Output(terminal), ours).startswith(b"\x1b[")
        monkeypatch.setenv("NO_COLOR", "1")
        assert _first_bytes(Output(terminal), ours).startswith(b"cloche")
    os.close(ours)


def _first_bytes(output: Output, handle: int) -> bytes:
    output.say("hello")
    output.close()
    return os.read(handle, 1000)


def test_a_terminal_that_does_not_read_makes_nobody_wait() -> None:
    reading, writing = os.pipe()
    with open(writing, "w") as stream:
        screen = Screen(stream, limit=10_000)
        for number in range(20_000):
            screen.write(f"line {number}\n".encode())
        collected = bytearray()
        reader = threading.Thread(target=_read_all, args=(reading, collected))
        reader.start()
        screen.flush()
        screen.write(b"after\n")
        screen.close()
    reader.join(10)
    text = collected.decode()
    assert "lines not shown" in text
    assert text.startswith("line 0\n")
    assert "after\n" in text
    assert len(text) < 20_000 * len("line 12345\n")


def _read_all(handle: int, into: bytearray) -> None:
    while data := os.read(handle, 65536):
        into += data
    os.close(handle)


def test_a_reader_that_went_away_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as stream:
        screen = Screen(stream)
        for _ in range(10):
            screen.write(b"x\n")
            screen.flush()
        screen.close()


def test_log_files_rotate_by_size(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "a.log", limit=100, backups=2)
    for number in range(20):
        log.write(b"%02d" % number + b"." * 38)
    log.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["a.log", "a.log.1", "a.log.2"]
    assert all(path.stat().st_size <= 100 for path in tmp_path.iterdir())
    assert (tmp_path / "a.log").read_bytes()[40:42] == b"19"


def test_a_log_file_that_cannot_be_written_loses_lines_and_counts_them(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "missing" / "a.log")
    log.write(b"12345")
    assert log.lost == 5
