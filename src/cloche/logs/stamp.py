"""When a record was made and what makes it unique: the two halves of a UUID version 7."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from time import time_ns

#: RFC 9562, 6.2, method 1: a counter of 42 bits that starts at random in its lower half, so that
#: it cannot run over, and 32 random bits below it. It is never reset: in a process ids rise
#: strictly, within a millisecond too. The random bits are drawn once per process.
_COUNTER_BITS = 41
_TAIL_BITS = 32


def _serials() -> Callable[[], int]:
    random = int.from_bytes(os.urandom(10), "big") >> (80 - _COUNTER_BITS - _TAIL_BITS)
    return itertools.count(random, 1 << _TAIL_BITS).__next__  # one step of C: no lock is needed


_next_serial = _serials()
_last = 0


def stamp() -> tuple[int, int]:
    """(µs since 1970, the 74 bits of an id that are not time).

    The time stands still while the clock was set back.
    """
    global _last
    micros = time_ns() // 1000
    if micros < _last:
        micros = _last
    else:
        _last = micros
    return micros, _next_serial()


def _after_fork() -> None:
    global _next_serial
    _next_serial = _serials()


os.register_at_fork(after_in_child=_after_fork)
