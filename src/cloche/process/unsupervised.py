"""Stopping a process that is not our child and that nobody supervises for us.

Its group may be a person's terminal job or a script's, so groups are never signalled here:
only the main process, and after it what it had started itself.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence

from cloche.process import table
from cloche.process.identity import Identity
from cloche.process.spec import StopSignal

_TICK = 0.05
#: Seconds that children of a main process which has gone get to notice it.
_NOTICE_TIMEOUT = 1.0
#: Seconds the kernel may take to clear away what was killed.
_CLEARING = 5.0


def stop_unsupervised(
    main: Identity,
    signals: Sequence[StopSignal],
    say: Callable[[str], None],
    *,
    asked: bool = False,
) -> bool:
    """Ask ``main`` to stop, signal by signal, then kill it and its descendants. Blocks.

    ``asked``: it has been sent the first signal already (a second one may mean "faster").

    True once it is gone, False if it would not go (uninterruptible sleep, another user).
    """
    family: set[Identity] = set()
    for number, wait in signals:
        family |= descendants(main)
        if not asked:
            main.signal(number)
        asked = False
        main.signal(signal.SIGCONT)  # a stopped process could not obey
        if _gone(main, wait):
            break
    else:
        family |= descendants(main)
        say(f"pid {main.pid} did not stop: killed")
        main.signal(signal.SIGKILL)
    gone = _gone(main, _CLEARING)
    _clear(family)
    return gone


def descendants(main: Identity) -> set[Identity]:
    """The live processes below ``main`` now."""
    if not main.alive():
        return set()
    children: dict[int, list[table.TableRow]] = {}
    for row in table.rows():
        children.setdefault(row.parent, []).append(row)
    found: set[Identity] = set()
    pending = [main.pid]
    while pending:
        for row in children.get(pending.pop(), ()):
            found.add(Identity(row.pid, row.started))
            pending.append(row.pid)
    return found


def _clear(family: set[Identity]) -> None:
    left = _left_of(family, _NOTICE_TIMEOUT)
    for one in left:
        one.signal(signal.SIGKILL)
    _left_of(left, _CLEARING)


def _left_of(processes: set[Identity], seconds: float) -> set[Identity]:
    """Those that still live after ``seconds``; returns early once none does."""
    deadline = time.monotonic() + seconds
    while (left := {one for one in processes if one.alive()}) and time.monotonic() < deadline:
        time.sleep(_TICK)
    return left


def _gone(main: Identity, seconds: float) -> bool:
    return not _left_of({main}, seconds)
