"""Results of pool threads, stored while the threads go on with other tasks.

A thread that runs tasks within :class:`Deferring` hands a success to one committing thread, which
stores all that have come in one round trip and only then lets the worker hear that the task is
done: it is acknowledged, told of in events and gone from ``inspect active`` after its result is
stored, as everywhere.
"""

from __future__ import annotations

import logging
import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from celery import Celery, Task, signals, states
from celery.app.trace import task_has_custom

from cloche.broker.results.store import StateWrite, send_stores
from cloche.process_local import ProcessLocal
from cloche.running import task_here

logger = logging.getLogger("cloche.transport")

#: Results that wait at most; beyond them each thread waits for its own.
WAITING = 200

#: Results in one round trip at most.
BATCH = 100


class Committer:
    """One thread that stores the results of all others; ``backend`` is one of theirs."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._queue: queue.SimpleQueue[tuple[StateWrite, Callable[[], None]]] = queue.SimpleQueue()
        self._waiting = 0
        self._changed = threading.Condition()
        name = "cloche-results"
        threading.Thread(target=self._run, name=name, daemon=True).start()

    @property
    def waiting(self) -> int:
        return self._waiting

    @property
    def full(self) -> bool:
        """Whether threads had better wait."""
        return self._waiting >= WAITING

    def store(self, one: StateWrite, then: Callable[[], None]) -> None:
        """Store it soon, and call ``then`` once it is stored."""
        with self._changed:
            self._waiting += 1
        self._queue.put((one, then))

    def drain(self, seconds: float | None = None) -> bool:
        """Wait until all is stored; False if it was not within ``seconds``."""
        with self._changed:
            return self._changed.wait_for(lambda: self._waiting == 0, seconds)

    def _run(self) -> None:
        while True:
            batch = [self._queue.get()]
            while len(batch) < BATCH and not self._queue.empty():
                batch.append(self._queue.get())
            self._commit(batch)
            with self._changed:
                self._waiting -= len(batch)
                self._changed.notify_all()

    def _commit(self, batch: list[tuple[StateWrite, Callable[[], None]]]) -> None:
        try:
            replies = send_stores(self._backend.client, [one for one, _ in batch])
        except Exception as error:  # noqa: BLE001 (stored one by one below)
            replies = [error] * len(batch)
        for (one, then), reply in zip(batch, replies, strict=True):
            try:
                if not isinstance(reply, int):
                    self._alone(one)
                then()
            except Exception:
                # Not stored: as in a thread of the pool, the task is not acknowledged.
                logger.exception("a task could not be finished: %s", one.key)

    def _alone(self, one: StateWrite) -> None:
        """As a thread stores its own: judged, and repeated as the backend's policy says."""
        self._backend.ensure(self._backend.store_now, (one,))


class ResultListener(Protocol):
    """Told from any thread that a thread of the pool has nothing to do."""

    def place_is_free(self) -> None: ...


_listeners: weakref.WeakSet[Any] = weakref.WeakSet()


class _Committers:
    def __init__(self) -> None:
        self.of: weakref.WeakKeyDictionary[Any, dict[str, Committer]] = weakref.WeakKeyDictionary()
        self.all: list[Committer] = []
        self.lock = threading.Lock()


_committers = ProcessLocal(_Committers)


def _committer(backend: Any) -> Committer:
    """The one for this application and server; Celery has a backend for each thread."""
    committers = _committers.get()
    found = committers.of.get(backend.app, {}).get(backend.url)
    if found is None:
        with committers.lock:
            of_app = committers.of.setdefault(backend.app, {})
            found = of_app.get(backend.url)
            if found is None:
                found = of_app[backend.url] = Committer(backend)
                committers.all.append(found)
    return found


def listen(listener: ResultListener) -> None:
    """Tell it, as long as it lives."""
    _listeners.add(listener)


def tell_idle() -> None:
    """From any thread: a thread of the pool has nothing to do."""
    for listener in tuple(_listeners):
        listener.place_is_free()


def finished() -> int:
    """Tasks of this process that have run and whose results are not stored yet."""
    return sum([one.waiting for one in _committers.get().all])


def drain(app: Celery) -> None:
    """Wait until every result of ``app`` is stored and its task told done."""
    for committer in list(_committers.get().of.get(app, {}).values()):
        committer.drain()


class _Thread(threading.local):
    deferring = False
    over = False
    deferred: tuple[Committer, StateWrite] | None = None


_thread = _Thread()


@contextmanager
def body_over(over: bool) -> Iterator[None]:
    """Within it the task's body is over, so that nobody but its thread waits for its result."""
    _thread.over = over and _thread.deferring
    try:
        yield
    finally:
        _thread.over = False


def deferred(backend: Any, one: StateWrite, state: str, request: Any) -> bool:
    """Whether the thread's :class:`Deferring` takes charge of this result."""
    if not _thread.over or state != states.SUCCESS or request is None or request.chord:
        return False
    task = task_here()
    if task is None or not unwatched(task):
        return False
    committer = _committer(backend)
    if committer.full:
        return False
    _thread.deferred = (committer, one)
    return True


def unwatched(task: Task) -> bool:
    """Whether nothing runs in the worker between storing the result and telling it is done."""
    return not (
        signals.task_success.receivers
        or signals.task_postrun.receivers
        or task_has_custom(task, "on_success")
        or task_has_custom(task, "after_return")
    )


class Deferring:
    """Run one task's tracer within it, and tell its outcome through :meth:`done`."""

    def __enter__(self) -> Deferring:
        _thread.deferring, _thread.deferred = True, None
        return self

    def __exit__(self, *_: object) -> None:
        _thread.deferring, _thread.deferred = False, None

    def done(self, callback: Callable[[Any], Any]) -> Callable[[Any], None]:
        """``callback`` for the tracer's outcome: called at once, or once the result is stored."""

        def told(outcome: Any) -> None:
            waits = _thread.deferred
            if waits is None:
                callback(outcome)
            else:
                committer, one = waits
                committer.store(one, lambda: callback(outcome))

        return told
