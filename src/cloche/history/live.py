"""The recent tasks, folded from Celery's events as they come.

Celery's events are fire and forget: what was sent while nobody listened is lost. So the
listener keeps its gaps, and whoever shows the tasks can say what it does not know.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from celery import Celery
from celery.events import EventReceiver
from celery.events.state import State, Task

from cloche.backoff import Backoff
from cloche.broker.connection.probe import reach
from cloche.plain import moment
from cloche.records import Gap, TaskRun

_log = logging.getLogger(__name__)
_BACKOFF = Backoff(first=0.5, limit=10.0, jitter=0.2)
_FINISHED = ("succeeded", "failed", "revoked", "rejected")


class LiveTasks:
    """The last ``limit`` task runs, newest first, kept by a thread of its own.

    ``on_event(event, task)`` is called in that thread with each event and, if it is one of a
    task's, what is known of the task with it.
    """

    def __init__(
        self,
        app: Celery,
        limit: int = 1000,
        clock: Callable[[], float] = time.time,
        on_event: Callable[[dict[str, Any], Task | None], None] | None = None,
    ):
        self.app = app
        self._tell = on_event
        self._clock = clock
        self._state = State(max_tasks_in_memory=limit, max_workers_in_memory=limit)
        self._gaps: deque[Gap] = deque(maxlen=100)
        self._deaf_since: float | None = None
        self._deaf_why = "nobody was listening yet"
        self._seen_at = 0.0
        self._listening = False
        self._version = 0
        self._receiver: EventReceiver | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to listen, in a thread that does not keep the process alive."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="live-tasks", daemon=True)
        self._thread.start()

    def stop(self, deadline: float = 5.0) -> None:
        """Stop listening; waits at most ``deadline`` seconds."""
        self._stopping.set()
        if self._receiver is not None:
            self._receiver.should_stop = True
        if self._thread is not None:
            self._thread.join(deadline)

    @property
    def version(self) -> int:
        """Grows with every event and every change of the connection."""
        return self._version

    @property
    def listening(self) -> bool:
        """Whether events can arrive now."""
        return self._listening

    def recent(self, limit: int = 50, *, state: str | None = None) -> tuple[TaskRun, ...]:
        """The newest ``limit`` runs, by the time of their last event."""
        runs = (run_from(task) for task in self._state.freeze_while(self._tasks))
        wanted = [run for run in runs if state is None or run.state == state]
        return tuple(wanted[:limit])

    def get(self, task_id: str) -> TaskRun | None:
        """The run with this id, if its events were seen and are still kept."""
        task = self._state.tasks.get(task_id)
        return None if task is None else run_from(task)

    def gaps(self) -> tuple[Gap, ...]:
        """When nobody listened, oldest first; one that lasts has no ``until``."""
        past = tuple(self._gaps)
        return past if self._listening else (*past, Gap(self._deaf_since, None, self._deaf_why))

    def workers(self) -> frozenset[str]:
        """Names of the workers whose task events were seen."""
        tasks = self._state.freeze_while(self._tasks)
        return frozenset(task.worker.hostname for task in tasks if task.worker is not None)

    def _tasks(self) -> list[Task]:
        """By the time of the last event, newest first; called with the state frozen."""
        return sorted(
            self._state.tasks.values(), key=lambda task: moment(task.timestamp) or 0.0, reverse=True
        )

    def _run(self) -> None:
        attempt = 0
        while not self._stopping.is_set():
            began = self._clock()
            try:
                self._listen()
            except Exception as error:  # noqa: BLE001 (any transport, any error: try again)
                attempt = 1 if self._seen_at > began else attempt + 1
                self._deaf(f"{type(error).__name__}: {str(error).splitlines()[:1] or ''}")
            self._stopping.wait(_BACKOFF.delay(max(1, attempt)))

    def _listen(self) -> None:
        with self.app.connection_for_read() as connection:
            reach(connection)
            receiver = EventReceiver(connection, {"*": self._on_event}, app=self.app)
            receiver.on_consume_ready = self._on_ready
            receiver.on_iteration = self._on_iteration
            receiver.connect_max_retries = 1  # or it would try for ever, deaf to stop()
            self._receiver = receiver
            # wakeup=False: a broadcast on the connection that consumes would race with it.
            for _ in receiver.consume(limit=None, wakeup=False):
                pass

    def _on_ready(self, *_args: Any, **_options: Any) -> None:
        now = self._clock()
        self._gaps.append(Gap(self._deaf_since, now, self._deaf_why))
        self._listening = True
        self._seen_at = now
        self._version += 1

    def _on_iteration(self) -> None:
        self._seen_at = self._clock()
        if self._stopping.is_set() and self._receiver is not None:
            self._receiver.should_stop = True

    def _on_event(self, event: dict[str, Any]) -> None:
        try:
            self._state.event(event)
        except Exception as error:  # noqa: BLE001 (anybody may publish one)
            _log.debug("an event that cannot be understood: %r", error)
            return
        self._version += 1
        if self._tell is not None:
            self._tell(event, self._state.tasks.get(event.get("uuid")))

    def _deaf(self, why: str) -> None:
        if self._listening:
            # Events may have been lost since the last time the connection was seen alive.
            self._deaf_since, self._deaf_why = self._seen_at, why
            self._listening = False
            self._version += 1


def run_from(task: Task) -> TaskRun:
    """What Celery's event state knows of a task, as a ``TaskRun``."""
    known = task.__dict__
    ends = [moment(known.get(name)) for name in _FINISHED]
    finished = max((end for end in ends if end), default=None)
    started, runtime = moment(task.started), task.runtime
    if runtime is None and finished and started:
        runtime = max(0.0, finished - started)  # only task-succeeded carries it
    return TaskRun.told(
        id=task.uuid,
        name=task.name,
        state=task.state,
        worker=None if task.worker is None else task.worker.hostname,
        queue=known.get("queue"),
        args=task.args,
        kwargs=task.kwargs,
        result=task.result,
        exception=task.exception,
        traceback=task.traceback,
        sent=task.sent,
        received=task.received,
        started=started,
        finished=finished,
        runtime=runtime,
        retries=task.retries or 0,
    )
