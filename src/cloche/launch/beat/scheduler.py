"""Celery's scheduler, of which only one sends at a time, and that misses no run unnoticed."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, TypeVar

from celery import Celery
from celery.beat import PersistentScheduler, ScheduleEntry, Scheduler
from celery.utils.imports import load_extension_class_names, symbol_by_name
from celery.utils.time import maybe_make_aware
from kombu import Producer
from kombu.exceptions import OperationalError

from cloche.broker.connection.outage import ERRORS, Outage
from cloche.broker.leader_lock import LeaderLock, on_redis, server_of
from cloche.broker.schedule_runs import FencedProducer, Runs, ScheduledRun, Sending
from cloche.cluster.schedules import beat_name, missed_runs, next_run
from cloche.errors import NotInChargeError
from cloche.file_lock import LeaderFileLock
from cloche.settings import Settings

logger = logging.getLogger("cloche.beat")

T = TypeVar("T")

#: Seconds between two looks of a scheduler that stands by or waits for its broker.
LOOK_INTERVAL = 0.5
#: Seconds after which the scheduler at work has noted what it sends.
COMPARE_AFTER = 5.0


class OneAtATime(Scheduler):
    """Put before any of Celery's schedulers by :func:`scheduler_class`.

    Only with the leader lock does it send. What another one sent meanwhile is read from the broker
    as soon as it takes over. A run whose sending fails is still due.
    """

    settings: Settings
    #: Told of what it does, in words (``leads``, ``stands by …``), and at every turn.
    on_turn: Callable[[str], None]
    longest: float
    _lock: LeaderLock | LeaderFileLock | None = None
    _runs: Runs | None = None
    _taken = 0
    _told = ""
    _failed_at = 0.0
    #: What the run that is being sent failed with.
    _unsent: Exception | None = None
    #: Whose schedules ours are compared with, and when (monotonic).
    _compared_with = ("", 0.0)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._outage = Outage("scheduling")
        self._complaints: dict[str, str] = {}
        super().__init__(*args, **kwargs)

    # -- what is sent

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """One turn: send what is due, one run at most. Seconds until the next."""
        wait = self._turn(*args, **kwargs)
        self.on_turn(self._told)
        return min(wait, self.longest)

    def _turn(self, *args: Any, **kwargs: Any) -> float:
        if self._outage.pausing and not self._is_back():
            return LOOK_INTERVAL
        wait = self._tried(lambda: self._work(*args, **kwargs))
        return LOOK_INTERVAL if wait is None else wait

    def _work(self, *args: Any, **kwargs: Any) -> float:
        if self._lock is None:
            self._open()
        if self._lock is None or not self._lock.held:
            self._stand_by()
            return LOOK_INTERVAL
        if self._lock.taken != self._taken:
            self._take_over()
        return float(super().tick(*args, **kwargs) or 0)

    def _is_back(self) -> bool:
        """Whether the broker has answered the lock's thread since sending failed."""
        return isinstance(self._lock, LeaderLock) and self._lock.reached > self._failed_at

    def _tried(self, action: Callable[[], T]) -> T | None:
        """What may fail because of the broker, told with one voice and tried again; then None."""
        try:
            return action()
        except self._troubles() as error:
            self._failed_at = time.monotonic()
            self._outage.failed(error)
            self._tell("waits for the broker")
            self._disconnect()
            return None

    def reserve(self, entry: ScheduleEntry) -> ScheduleEntry:
        """The entry after its next run. Some schedulers (django-celery-beat's) keep it to
        themselves, so it is remembered here."""
        self._advanced: ScheduleEntry = super().reserve(entry)
        return self._advanced

    def apply_entry(self, entry: ScheduleEntry, producer: Producer | None = None) -> None:
        """Send one run; if it cannot be sent now it stays due."""
        if self._tried(lambda: self._apply(entry, producer)) is None:
            self._put_back(entry)

    def _apply(self, entry: ScheduleEntry, producer: Producer | None) -> bool:
        if isinstance(producer, FencedProducer):
            run = ScheduledRun(self._advanced.last_run_at, self._advanced.total_run_count)
            producer.sending = Sending(entry.name, entry.last_run_at.isoformat(), run)
        error = self._celerys_way(entry, producer)
        if error is not None:
            cause = error.__context__ or error
            if isinstance(cause, NotInChargeError):
                logger.warning("%s", cause)
                self._put_back(entry)
                return False
            if isinstance(cause, self._troubles()):
                raise cause from None
            self._complain(entry, cause)
            return True  # it would fail at once again: its next turn is soon enough
        self._outage.over()
        return True  # Celery has said what it sends

    def _celerys_way(self, entry: ScheduleEntry, producer: Producer | None) -> Exception | None:
        """What Celery's own ``apply_entry`` failed with: Sentry's crons and ddtrace wrap it."""
        self._unsent = None
        super().apply_entry(entry, producer=producer)  # called as Celery calls it
        return self._unsent

    def apply_async(
        self,
        entry: ScheduleEntry,
        producer: Producer | None = None,
        advance: bool = True,
        **kwargs: Any,
    ) -> Any:
        """As Celery's; :meth:`apply_entry` is told of an error afterwards."""
        try:
            return super().apply_async(entry, producer=producer, advance=advance, **kwargs)
        except Exception as error:
            if advance:
                raise
            self._unsent = error  # Celery's apply_entry would log two stacks, each time
            return None

    def _complain(self, entry: ScheduleEntry, error: BaseException) -> None:
        """The traceback the first time only: a wrong schedule is wrong at every run."""
        news = self._complaints.get(entry.name) != str(error)
        self._complaints[entry.name] = str(error)
        logger.error(
            "%s (%s) could not be sent: %r", entry.name, entry.task, error,
            exc_info=error if news else None,
        )  # fmt: skip

    def _put_back(self, entry: ScheduleEntry) -> None:
        self.schedule[entry.name] = entry
        self._heap = None

    @property
    def producer(self) -> Producer:
        """Connects when it publishes, not before."""
        found = self.__dict__.get("producer")
        if found is None:
            if isinstance(self._lock, LeaderLock) and self._runs is not None:
                found = FencedProducer(self.connection, auto_declare=False)
                found.lock, found.runs = self._lock, self._runs
            else:
                found = Producer(self.connection, auto_declare=False)
            self.__dict__["producer"] = found
        return found

    def _disconnect(self) -> None:
        self.__dict__.pop("producer", None)
        connection = self.__dict__.pop("connection", None)
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.collect()

    def _troubles(self) -> tuple[type[Exception], ...]:
        """What is raised where the broker is the reason."""
        lost = (*self.connection.connection_errors, *self.connection.channel_errors)
        return (OperationalError, *ERRORS, *lost)

    # -- who sends

    def _open(self) -> None:
        """Get in line for the leader lock. Raises the connection's errors."""
        if not on_redis(self.connection):
            path = self.settings.run_dir.absolute() / "beat.lock"
            logger.warning(
                "this broker keeps no lock: one scheduler per run directory is made sure of "
                "(%s), run no other one elsewhere",
                path,
            )
            self._lock = LeaderFileLock(path)
            self._lock.start()
            return
        server = server_of(self.app.connection_for_write())
        if server is not None:
            name = beat_name(self.app, self.settings)
            self._runs = Runs(server, name)
            self._lock = LeaderLock(server, name, self.settings.beat.lock)
            self._lock.start()

    def _stand_by(self) -> None:
        holder = self._lock.holder if self._lock is not None else ""
        if self._lock is not None and holder == self._lock.me:  # not heard of it for too long
            self._tell("waits for the broker")
            return
        self._tell(f"stands by: the scheduler at work is {holder or 'not known'}")
        self._compare(holder)

    def _compare(self, holder: str) -> None:
        """Say once what the scheduler at work does not send: it may be another application's."""
        if holder != self._compared_with[0]:
            self._compared_with = (holder, time.monotonic() + COMPARE_AFTER)
        if time.monotonic() < self._compared_with[1] or self._runs is None or not holder:
            return
        self._compared_with = (holder, float("inf"))
        missing = sorted(self.schedule.keys() - self._runs.read().keys())
        if missing:
            logger.warning(
                "%s does not send %s: if it is another application's, give one of the two "
                "a beat.name", holder, ", ".join(missing),
            )  # fmt: skip

    def _take_over(self) -> None:
        """Go on where the last scheduler ended."""
        assert self._lock is not None  # noqa: S101 (it is held)
        if self._runs is not None:
            self._go_on(self._runs)
        self._taken = self._lock.taken
        self._heap = None
        count = len(self.schedule)
        self._tell(f"leads: {count} {'schedule' if count == 1 else 'schedules'}")

    def _go_on(self, runs: Runs) -> None:
        known = runs.read()
        runs.forget(*(known.keys() - self.schedule.keys()))
        now, missed = self.app.now(), {}
        for name, entry in self.schedule.items():
            run = known.get(name)
            if run is None:
                runs.note(name, ScheduledRun(entry.last_run_at, 0))
                continue
            if entry.total_run_count and run.at < maybe_make_aware(entry.last_run_at):
                # The scheduler's own memory is newer: another launcher of the project sent it.
                run = ScheduledRun(maybe_make_aware(entry.last_run_at), entry.total_run_count)
                runs.note(name, run)
            entry.last_run_at, entry.total_run_count = run.at, run.count
            until = now - timedelta(seconds=self.settings.beat.late)
            if count := missed_runs(entry.schedule, run.at, until):
                missed[name] = self._catch_up(entry, count, now, runs)
        for line in missed.values():
            logger.warning("%s", line)

    def _catch_up(self, entry: ScheduleEntry, count: int, now: datetime, runs: Runs) -> str:
        one = self.settings.beat.schedules.get(entry.name)
        policy = (one.catch_up if one else None) or self.settings.beat.catch_up
        since = next_run(entry.schedule, entry.last_run_at)
        what = f"{entry.name} missed {count} {'run' if count == 1 else 'runs'} since {since:%F %T}"
        if policy == "once":
            return f"{what}: it runs once now"
        entry.last_run_at = now
        runs.note(entry.name, ScheduledRun(now, entry.total_run_count))
        return f"{what}: they are skipped"

    def _tell(self, words: str) -> None:
        """One line for each change."""
        if words != self._told:
            self._told = words
            logger.info("the scheduler %s", words)

    def close(self) -> None:
        """Celery calls it more than once."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.stop()
        super().close()


def scheduler_class(
    app: Celery, settings: Settings, on_turn: Callable[[str], None], longest: float
) -> type[OneAtATime]:
    """The scheduler of ``beat.scheduler`` or the application's, else Celery's; where
    the broker remembers the runs it needs no file. ``longest``: seconds between turns at most.
    """
    remembers = on_redis(app.connection_for_write())
    base: Any = Scheduler if remembers else PersistentScheduler
    if settings.beat.scheduler is not None:
        names = load_extension_class_names("celery.beat_schedulers")  # as Celery: "django"
        base = symbol_by_name(settings.beat.scheduler, aliases=dict(names))
    members = {"settings": settings, "on_turn": staticmethod(on_turn), "longest": longest}
    return type("CelerysScheduler", (OneAtATime, base), members)
