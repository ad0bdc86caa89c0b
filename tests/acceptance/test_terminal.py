"""``cloche up`` on a terminal: it asks instead of giving up."""

from __future__ import annotations

import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloche.testing import free_port
from tests.acceptance.stack import Stack


class Terminal:
    """A stack whose launcher sits on a pseudo-terminal that a person types into."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.screen = ""
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cloche", "up"],
            cwd=stack.directory,
            env={**stack.environ, "TERM": "xterm", "COLUMNS": "100"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        stack.adopt(self.process)
        os.close(slave)

    def wait_for(self, text: str, deadline: float = 40) -> None:
        end = time.monotonic() + deadline
        while text not in self.screen:
            assert time.monotonic() < end, f"{text!r} not on the screen:\n{self.screen}"
            if select.select([self._master], [], [], 0.2)[0]:
                try:
                    self.screen += os.read(self._master, 65536).decode(errors="replace")
                except OSError:  # the other end is closed (EIO)
                    assert text in self.screen, self.screen
                    return

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def close(self) -> None:
        os.close(self._master)
        self.stack.close()


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    made = Stack(tmp_path)
    made.environ["CLOCHE_BROKER__START_TRIES"] = "1"
    return made


@pytest.fixture
def terminal(stack: Stack) -> Iterator[Terminal]:
    stack.environ["CLOCHE_BROKER__EMBEDDED"] = "auto"
    stack.environ["REDIS_URL"] = f"redis://127.0.0.1:{free_port()}/0"
    opened = Terminal(stack)
    yield opened
    opened.close()


def test_a_broker_that_is_away_may_be_replaced_by_the_embedded_one(terminal: Terminal) -> None:
    terminal.wait_for("or [q]uit?")
    assert "connection refused" in terminal.screen
    terminal.type("e\n")
    terminal.wait_for("ready in")
    assert "embedded" in terminal.screen
    terminal.wait_for("Ctrl-C stops everything")
    terminal.process.send_signal(signal.SIGINT)
    terminal.wait_for("stopped")
    assert terminal.process.wait(20) == 0


def test_a_broker_that_is_away_may_be_asked_again_or_given_up(terminal: Terminal) -> None:
    terminal.wait_for("or [q]uit?")
    terminal.type("r\n")
    terminal.screen = ""
    terminal.wait_for("or [q]uit?")
    terminal.type("q\n")
    terminal.wait_for("error:")
    assert terminal.process.wait(20) == 3
    assert "Traceback" not in terminal.screen


def test_ctrl_c_ends_a_wait_for_the_broker_at_once(stack: Stack) -> None:
    stack.environ["CLOCHE_BROKER__EMBEDDED"] = "auto"
    stack.environ["CLOCHE_BROKER__START_TRIES"] = "50"
    stack.environ["REDIS_URL"] = f"redis://127.0.0.1:{free_port()}/0"
    terminal = Terminal(stack)
    try:
        terminal.wait_for("try 3 of 50")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.process.wait(10) == 130
    finally:
        terminal.close()


def test_a_taken_port_may_be_exchanged_for_a_free_one(stack: Stack) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        stack.environ["CLOCHE_SERVICE__PORT"] = str(taken.getsockname()[1])
        terminal = Terminal(stack)
        try:
            terminal.wait_for("[Y/n]")
            terminal.type("\n")
            terminal.wait_for("Ctrl-C stops everything")
        finally:
            terminal.close()
