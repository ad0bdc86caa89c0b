"""Broker, database, disk away, or data that would command the terminal: in every command."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from cloche import ExecutionLogger, create_app
from cloche.settings import load
from cloche.testing import clean_environ
from tests import commands

AWAY = '[broker]\nurl = "redis://:hunter2@127.0.0.1:1/0"\nstart_tries = 1\nconnect_timeout = 1\n'


def run(directory: Path, toml: str, *words: str) -> subprocess.CompletedProcess[str]:
    (directory / "cloche.toml").write_text(toml)
    return commands.cloche(*words, cwd=directory, env=clean_environ())


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("dlq list", 3),
        ("dlq show x", 3),
        ("dlq retry --all", 3),
        ("dlq purge --all", 3),
        ("schedules", 3),
        ("health --timeout 1", 1),
    ],
)
def test_a_broker_that_is_away_is_one_message(tmp_path: Path, words: str, code: int) -> None:
    ended = run(tmp_path, AWAY, *words.split())
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "hunter2" not in ended.stdout + ended.stderr


@pytest.mark.parametrize("words", ["logs query", "logs summary", "logs errors", "logs export"])
def test_a_database_that_is_away_is_one_message(tmp_path: Path, words: str) -> None:
    url = "postgresql://127.0.0.1:1/d?user=u&password=hunter2"
    ended = run(tmp_path, f'[database]\nurl = "{url}"\n', *words.split())
    assert ended.returncode == 6, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "hunter2" not in ended.stdout + ended.stderr


@pytest.mark.parametrize("sign", list("/#?@:"))
def test_a_password_is_hidden_however_it_is_written(tmp_path: Path, sign: str) -> None:
    toml = f'[broker]\nurl = "redis://:hunter2{sign}x@127.0.0.1:1/0"\nstart_tries = 1\n'
    for words in ("health --timeout 1", "dlq list", "config show"):
        ended = run(tmp_path, toml, *words.split())
        assert "hunter2" not in ended.stdout + ended.stderr, words
        assert "Traceback" not in ended.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="NEEDS ROOT: mounts a small file system")
def test_a_full_disk_is_one_message(tmp_path: Path) -> None:
    disk = tmp_path / ".cloche"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=True)
    try:
        with pytest.raises(OSError, match="No space"):
            (disk / "fill").write_bytes(bytes(2_000_000))
        for words in ("up", "start", "logs query"):
            ended = run(tmp_path, "", *words.split())
            assert ended.returncode in (1, 6), ended.stderr
            assert "Traceback" not in ended.stderr
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_data_neither_commands_a_terminal_nor_forges_a_record(tmp_path: Path) -> None:
    odd = "x\x1b]0;owned\x07\x9b2Jy\n2026-11-30 10:00:00.000 CRITICAL c s: forged\r\u202egnp"
    toml = '[broker]\nurl = "redis://127.0.0.1:1/0"\n[logs]\nfallback = "direct"\n'
    (tmp_path / "cloche.toml").write_text(toml)
    settings = load({"run_dir": str(tmp_path / ".cloche")}, environ={}, directory=tmp_path).settings
    log = ExecutionLogger(create_app("odd", settings), settings)
    log.error(odd, odd, odd, run_id=odd, agent=odd, details={"traceback": odd})
    log.close()
    for words in ("logs query", "logs errors", "logs summary"):
        shown = _on_a_terminal(tmp_path, words)
        assert b"owned" in shown, shown
        assert b"\x1b]" not in shown
        assert b"\x07" not in shown
        assert "\x9b".encode() not in shown
        assert "\u202e".encode() not in shown
        assert not [line for line in shown.splitlines() if line.startswith(b"2026-11-30 10:00")]


def _on_a_terminal(directory: Path, words: str) -> bytes:
    """What a terminal of 40 columns gets."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "cloche", *words.split()]
    environ = {**clean_environ(), "COLUMNS": "40", "TERM": "xterm"}
    with subprocess.Popen(command, cwd=directory, env=environ, stdout=theirs, stderr=theirs):
        os.close(theirs)
        shown = bytearray()
        try:
            while piece := os.read(ours, 65536):
                shown += piece
        except OSError:  # the other end is closed
            pass
        os.close(ours)
    return bytes(shown)
