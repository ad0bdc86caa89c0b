"""Ctrl-C while a command waits."""

from __future__ import annotations

import os
import signal
import time

import pytest

from cloche.process.interrupt import Interrupt


class _InterruptedWhenCleared:
    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)  # the handler runs here, and what it raises is dropped


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_ctrl_c_that_arrives_in_a_destructor_ends_the_wait() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupt() as interrupt:
        doomed = _InterruptedWhenCleared()
        del doomed
        begun = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            interrupt.sleep(60)
        assert time.monotonic() - begun < 30
    assert signal.getsignal(signal.SIGINT) is before


def test_a_wait_that_nobody_ends_takes_its_time() -> None:
    with Interrupt() as interrupt:
        interrupt.sleep(0.01)
