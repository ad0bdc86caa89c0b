"""The soak's producer: ``python -m tests.chaos.soak_publish FIRST COUNT SECONDS SEED``.

It publishes in the parent, then forks again and again while the parent goes on publishing. The
children publish from threads, a loop, or their main thread. Each process writes a file of its own:

- ``sent NUMBER ID BEGAN ENDED KIND AFTER``: the broker took it, or will take it when the AFTER
  numbers before it, in its chain or chord, have run;
- ``raised NUMBER BEGAN ENDED KIND``: it may have taken it;
- ``untold NUMBER``: ``map_delay`` said that all was well, and gave fewer ids than numbers;
- ``got NUMBER RESULT`` and ``late NUMBER``: what ``get()`` gave.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from celery import chain, chord
from celery.exceptions import TimeoutError as ResultTimeoutError

from tests.chaos.soak_app import POOLS, again, append, follow, gather, note, wait, work

#: Shares of the numbers that each pool's own queue gets.
SHARES = (55, 33, 8, 4)
BATCH = 100
#: Numbers that a forked process publishes before another takes its place.
CHILD = 3000
#: One in so many single publishes is waited for where it was published.
SAMPLE = 100
#: How many times the seconds asked for it may take on a slow machine; what is not published by
#: then never is.
LONGER = 1.3
#: What a forked process does.
KINDS = ("threads", "loop", "main")


#: Number -> (task id, how many of the numbers just before it must have run before it).
Sent = dict[int, tuple[str, int]]


class Pace:
    """Numbers of a range, handed out evenly until a moment; none after ``end``."""

    def __init__(self, numbers: range, until: float, end: float) -> None:
        self._end = end
        self._numbers, self._began, self._until = numbers, time.time(), until
        self._next = numbers.start
        self._lock = threading.Lock()

    def take(self, count: int) -> tuple[range, float]:
        """The next numbers, fewer at the end; seconds until it is their turn."""
        with self._lock:
            first = self._next
            if time.time() > self._end:
                return range(first, first), 0.0
            self._next = min(first + count, self._numbers.stop)
            share = (first - self._numbers.start) / len(self._numbers)
            due = self._began + share * (self._until - self._began)
            return range(first, self._next), max(0.0, due - time.time())


class Publisher:
    """Publishes numbers in all the ways there are, and notes what it was told."""

    def __init__(self, pace: Pace, who: str, seed: int) -> None:
        self._pace, self._who = pace, who
        self._random = random.Random(seed)
        self._ways = (
            self._many,
            self._delay,
            self._options,
            self._retried,
            self._chain,
            self._chord,
        )

    def run(self) -> None:
        """Until there are no numbers left."""
        while True:
            (way,) = self._random.choices(self._ways, (1, 30, 8, 4, 2, 1))
            size = {self._many: BATCH, self._chain: 3, self._chord: 4}.get(way, 1)
            numbers, pause = self._pace.take(size)
            if not numbers:
                return
            time.sleep(pause)
            if size in (3, 4) and len(numbers) < size:
                way = self._many
            self._publish(numbers, way)

    async def loop(self) -> None:
        """The same for coroutines: ``adelay`` and ``aapply_async``."""
        while True:
            numbers, pause = self._pace.take(self._random.choices((1, BATCH), (50, 1))[0])
            if not numbers:
                return
            await asyncio.sleep(pause)
            if len(numbers) > 1:
                await asyncio.to_thread(self._publish, numbers, self._many)
                continue
            (number,) = numbers
            began = time.time()
            try:
                if number % 3:
                    result = await note.adelay(number)
                else:
                    result = await wait.aapply_async((number,), queue=self._queue())
            except Exception as error:
                self._raised(numbers, began, error)
                continue
            self._sent({number: (result.id, 0)}, began)
            if number % SAMPLE == 0:
                try:
                    self._note(f"got {number} {await result.aget(timeout=30)}")
                except Exception:
                    traceback.print_exc()
                    self._note(f"late {number}")

    def _publish(self, numbers: range, way: Callable[[range], Sent]) -> None:
        began = time.time()
        try:
            found = way(numbers)
        except Exception as error:
            self._raised(numbers, began, error)
            return
        self._sent(found, began)
        if way == self._delay and numbers[0] % SAMPLE == 0:
            self._get(numbers[0])

    def _delay(self, numbers: range) -> Sent:
        self._last = note.delay(numbers[0])
        return {numbers[0]: (self._last.id, 0)}

    def _options(self, numbers: range) -> Sent:
        task = self._random.choice((note, work, wait))
        options: dict[str, Any] = {"headers": {"number": numbers[0]}}
        if self._random.random() < 0.5:
            options["countdown"] = self._random.uniform(0.2, 3)
        result = task.apply_async((numbers[0],), queue=self._queue(), **options)
        return {numbers[0]: (result.id, 0)}

    def _retried(self, numbers: range) -> Sent:
        return {numbers[0]: (again.apply_async((numbers[0],), queue=self._queue()).id, 0)}

    def _many(self, numbers: range) -> Sent:
        published = note.map_delay(numbers, queue=self._queue())
        if not published.ok:
            raise RuntimeError(published.failed[0].error)
        if len(published) != len(numbers):
            self._note("\n".join(f"untold {number}" for number in numbers))
        return {n: (i, 0) for n, i in zip(numbers, published.ids, strict=True)}

    def _chain(self, numbers: range) -> Sent:
        first, *others = numbers
        steps = [note.s(first), *(follow.s(number) for number in others)]
        result = chain(*(one.set(queue=self._queue()) for one in steps)).apply_async()
        found: Sent = {}
        for number in reversed(numbers):
            found[number] = (result.id, int(number != first))
            result = result.parent
        return found

    def _chord(self, numbers: range) -> Sent:
        *header, body = numbers
        parts = [note.s(number).set(queue=self._queue()) for number in header]
        result = chord(parts)(gather.s(body).set(queue=self._queue()))
        ids = [part.id for part in result.parent.results]
        found: Sent = {number: (i, 0) for number, i in zip(header, ids, strict=True)}
        return {**found, body: (result.id, len(header))}

    def _get(self, number: int) -> None:
        try:
            self._note(f"got {number} {self._last.get(timeout=30)}")
        except (ResultTimeoutError, OSError):
            self._note(f"late {number}")
        except Exception:
            traceback.print_exc()  # a lost connection: its result is compared later
            self._note(f"late {number}")

    def _queue(self) -> str:
        return self._random.choices(POOLS, SHARES)[0]

    def _sent(self, ids: Sent, began: float) -> None:
        ended = time.time()
        who = self._who
        lines = (
            f"sent {n} {i} {began:.3f} {ended:.3f} {who} {after}" for n, (i, after) in ids.items()
        )
        self._note("\n".join(lines))

    def _raised(self, numbers: range, began: float, error: Exception) -> None:
        ended = time.time()
        print(f"{ended:.3f} {self._who} {numbers}: {error!r}", file=sys.stderr, flush=True)
        self._note("\n".join(f"raised {n} {began:.3f} {ended:.3f} {self._who}" for n in numbers))

    def _note(self, line: str) -> None:
        append(Path(os.environ["SOAK_PUBLISHED"]) / f"{self._who}.{os.getpid()}", line)


def child(kind: str, pace: Pace, seed: int) -> None:
    """What a forked process does."""
    if kind == "main":
        Publisher(pace, "fork", seed).run()
    elif kind == "loop":

        async def several() -> None:
            found = (Publisher(pace, "loop", seed + one) for one in range(8))
            await asyncio.gather(*(one.loop() for one in found))

        asyncio.run(several())
    else:
        found = (Publisher(pace, "thread", seed + one) for one in range(3))
        threads = [threading.Thread(target=one.run) for one in found]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def forked(kind: str, pace: Pace, seed: int) -> Callable[[], int]:
    """Fork; the function waits for the child and gives its exit code."""
    if kind == "loop":
        context = multiprocessing.get_context("fork")
        process = context.Process(target=child, args=(kind, pace, seed))
        process.start()

        def joined() -> int:
            process.join()
            return int(process.exitcode or 0)

        return joined
    pid = os.fork()
    if not pid:
        code = 1
        try:
            child(kind, pace, seed)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return lambda: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def generations(numbers: range, until: float) -> Iterator[tuple[list[range], float]]:
    """Slices of all numbers, one for each child and one for the parent, and when they must end."""
    began = time.time()
    each = min(CHILD, max(1, len(numbers) // (2 * (len(KINDS) + 1))))
    size = each * (len(KINDS) + 1)
    for first in range(numbers.start, numbers.stop, size):
        part = range(first, min(first + size, numbers.stop))
        share = (part.stop - numbers.start) / len(numbers)
        slices = [part[at : at + each] for at in range(0, len(part), each)]
        yield slices, began + share * (until - began)


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    first, count, seconds, seed = (int(word) for word in sys.argv[1:])
    began = time.time()
    end = began + seconds * LONGER
    Publisher(Pace(range(first, first + 1), began, end), "parent", seed).run()
    failed = 0
    for slices, until in generations(range(first + 1, first + count), began + seconds):
        own, *others = (Pace(part, until, end) for part in slices)
        seed += 100
        kinds = zip(KINDS, others, strict=False)
        waits = [forked(kind, pace, seed + at * 10) for at, (kind, pace) in enumerate(kinds)]
        Publisher(own, "parent", seed).run()
        failed += sum(1 for one in waits if one())
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
