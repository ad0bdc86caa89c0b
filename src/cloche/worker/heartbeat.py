"""The worker's side of its heartbeat: its loop notes every two seconds and more how it stands.

A thread does so while the loop does not turn, and tells systemd that the worker lives
(``WATCHDOG=1``), as long as that is true.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from celery import Celery, bootsteps, signals
from celery.worker import state as worker_state
from celery.worker.consumer import Consumer
from kombu.asynchronous import Hub
from kombu.exceptions import OperationalError

from cloche.broker.connection.probe import reach
from cloche.process import table
from cloche.process.heartbeat import (
    DIRECTORY,
    PERIOD,
    SILENT,
    Heartbeat,
    HeartbeatFile,
    heartbeat_path,
)
from cloche.process.identity import Identity
from cloche.process.systemd import SystemdWatchdog
from cloche.settings.of_app import settings_of

logger = logging.getLogger(__name__)

#: Has a worker write the stacks of all its threads beside its heartbeat, whatever they do.
STACKS_SIGNAL = signal.SIGUSR2
#: Seconds after which the next turn of the loop is a beat, whatever turned it, and after which the
#: thread turns it. An idle loop is turned by its transport every five seconds: each beat by the
#: thread is a second nearer to the next of these turns, until the beat is in it and stays there.
BEAT_FROM, BEAT_BY = 4.9, 6.0
#: Seconds between two looks at the broker while the worker is not connected to it.
_ASK_EVERY = 5.0
#: Seconds for which the broker may answer others while the worker does not connect to it.
_CONNECTS_WITHIN = 60.0


class HeartbeatStep(bootsteps.StartStopStep):
    """A step of the consumer: it begins with each connection and ends with it."""

    requires = ("celery.worker.consumer.tasks:Tasks",)
    name = "cloche.worker.heartbeat.PulseStep"

    def __init__(self, consumer: Consumer, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._heart = WorkerHeartbeat(consumer)

    def start(self, consumer: Consumer) -> None:
        self._heart.connected = True
        self._heart.turn()
        self._heart.start()

    def stop(self, consumer: Consumer) -> None:
        self._heart.connected = False
        self._heart.tell()

    terminate = stop

    def shutdown(self, consumer: Consumer) -> None:
        self._heart.stop()

    def register_with_event_loop(self, consumer: Consumer, hub: Hub) -> None:
        """Celery calls it after each connection, and drops timers with the connection.

        On Redis no timer of our own: a loop that turns too seldom is turned by the thread.
        """
        self._heart.take_over_heartbeats()
        hub.on_tick.add(self._heart.turn)
        if consumer.connection.transport.driver_type != "redis":
            # Each second: what Celery drains first thing as its loop begins is acknowledged with
            # the loop's next turn (celery.worker.loops._quick_drain), and lost with a kill -9
            # before that.
            hub.call_repeatedly(1.0, self._heart.turn)


class WorkerHeartbeat:
    """One worker's. ``connected`` is set by the step."""

    def __init__(self, consumer: Consumer) -> None:
        settings = settings_of(consumer.app)
        self.connected = False
        self._consumer = consumer
        self._directory: Path = settings.run_dir.absolute()
        self._file = HeartbeatFile(self._directory, consumer.hostname)
        self._turned = self._beaten = time.monotonic()
        self._noted, self._told_active = 0.0, 0
        self._asked = False
        self._life = SystemdWatchdog()
        self._broker = _Broker(consumer)
        self._identity = Identity.own()
        self._stacks: IO[str] | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def turn(self) -> None:
        """In the loop: it turns."""
        now = self._turned = time.monotonic()
        self._asked = False
        beats = now - self._beaten >= BEAT_FROM
        if beats or now - self._noted >= PERIOD:
            self.tell()
        if beats:
            self._beaten = now
            if self.take_over_heartbeats():
                self._consumer.heart._send("worker-heartbeat")

    def take_over_heartbeats(self) -> bool:
        """Send Celery's heartbeats together with all else that is due, in place of its timer.

        Each turn of an idle loop costs the same whatever it does (decision 0029). False if there
        are none, or their interval is another than ``cloche worker`` has.
        """
        heart = self._consumer.heart
        if heart is None or heart.tref is None or not BEAT_FROM <= heart.interval <= BEAT_BY:
            return False
        heart.tref.cancel()
        return True

    def tell(self) -> None:
        """Something has changed that nobody should wait to hear of: note it, unless it is over."""
        if self._thread is not None and not self._stopping.is_set():
            self._note(self._now())

    @property
    def _alone(self) -> bool:
        """Whether the loop stands still while a task runs: Celery's solo pool, or ours."""
        return type(self._consumer.pool).__module__.endswith("solo")

    def _begins(self, **_: Any) -> None:
        """A task begins in the loop's own thread: the last word of the loop for as long as it
        takes. Not of each of many."""
        if not self._told_active or time.monotonic() - self._noted > PERIOD / 10:
            self._note(self._now())

    def start(self) -> None:
        if self._thread is not None:
            return
        with contextlib.suppress(OSError):
            (self._directory / DIRECTORY).mkdir(mode=0o700, parents=True, exist_ok=True)
            self._register_stacks()
        self._note(self._now())
        if self._alone:
            signals.task_prerun.connect(self._begins, weak=False, dispatch_uid="cloche-heartbeat")
        self._thread = threading.Thread(target=self._run, name="cloche-heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End: the worker has no heartbeat any more."""
        self._stopping.set()
        self._clear()

    def _register_stacks(self) -> None:
        if os.environ.get("CELERY_RDBSIG"):  # Celery's debugger takes the same signal
            return
        path = heartbeat_path(self._directory, self._consumer.hostname, ".stacks")
        self._stacks = path.open("w")
        faulthandler.register(STACKS_SIGNAL, file=self._stacks, all_threads=True)

    def _run(self) -> None:
        while not self._stopping.wait(self._pause()):
            self._beat()

    def _beat(self) -> None:
        """In the thread: what the loop did not do, and what systemd waits for."""
        self._have_it_turned()
        heartbeat = self._now()
        if heartbeat.at - self._noted > 1.25 * PERIOD:
            self._note(heartbeat)
        if self._life.period is None:  # nobody waits for it
            return
        if heartbeat.trouble() is None and (heartbeat.connected or not self._broker.answers_long()):
            self._life.give()

    def _have_it_turned(self) -> None:
        """In the thread: wake a loop that has not turned for too long, once."""
        hub, late = self._consumer.hub, time.monotonic() - self._beaten >= BEAT_BY
        if late and self.connected and hub is not None and not self._asked:
            self._asked = True
            hub.call_soon(self.turn)

    def _pause(self) -> float:
        rest = self._beaten + BEAT_BY - time.monotonic()
        longest = rest if rest > 0 else 2 * PERIOD  # less than SILENT, both
        return min(longest, (self._life.period or 2 * longest) / 2)

    def _note(self, heartbeat: Heartbeat) -> None:
        self._noted, self._told_active = heartbeat.at, heartbeat.active
        try:
            self._file.write(heartbeat)
        except OSError:
            self._clear()  # no heartbeat is better than an old one: nobody judges by it

    def _clear(self) -> None:
        self._file.remove()

    def _now(self) -> Heartbeat:
        consumer = self._consumer
        pool = type(consumer.pool).__module__
        now = time.monotonic()
        return Heartbeat(
            node=consumer.hostname,
            pid=self._identity.pid,
            started=self._identity.started,
            boot=table.boot_id(),
            at=now,
            # Without an event loop (a transport that has none) nothing tells of its turns.
            turned=self._turned if consumer.hub is not None else now,
            connected=self.connected,
            queues=self._queues(),
            pool=pool.rpartition(".")[2],
            slots=int(getattr(consumer.pool, "limit", 0) or 0),
            active=len(worker_state.active_requests),
            reserved=len(worker_state.reserved_requests),
            processed=sum(list(worker_state.total_count.values())),
            alone=self._alone,
        )

    def _queues(self) -> tuple[str, ...]:
        consumer = self._consumer.task_consumer
        return tuple(queue.name for queue in list(consumer.queues)) if consumer is not None else ()


class _Broker:
    """Whether the broker answers others, while the worker has no connection to it."""

    def __init__(self, consumer: Consumer) -> None:
        self._connect: Callable[[], Any] = consumer.app.connection_for_read
        self._ask_at = 0.0
        self._since: float | None = None

    def answers_long(self) -> bool:
        """Whether it has answered for so long that the worker should be connected."""
        now = time.monotonic()
        if now >= self._ask_at:
            self._ask_at = now + _ASK_EVERY
            if not self._answers():
                self._since = None
            elif self._since is None:
                self._since = now
        return self._since is not None and now - self._since > _CONNECTS_WITHIN

    def _answers(self) -> bool:
        try:
            with self._connect() as connection:
                reach(connection, SILENT)
        except (OperationalError, OSError):
            return False
        except Exception as error:  # noqa: BLE001 (a transport may raise anything)
            logger.debug("the broker does not answer: %r", error)
            return False
        return True


def add_heartbeat(app: Celery) -> None:
    """Have the workers of ``app`` keep a heartbeat; again is harmless."""
    app.steps["consumer"].add(HeartbeatStep)
