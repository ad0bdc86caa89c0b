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
from celery.utils.imports import symbol_by_name
from kombu import Producer
from kombu.exceptions import OperationalError

from cloche.broker.baton import Baton, on_redis, server_of
from cloche.broker.outage import ERRORS, Outage
from cloche.broker.schedule_runs import FencedProducer, Run, Runs, Sending
from cloche.cluster.schedules import beat_name, missed_runs, next_run
from cloche.errors import NotInChargeError
from cloche.process.only_one import FileBaton
from cloche.settings import Settings

logger = logging.getLogger("cloche.beat")

T = TypeVar("T")

#: Seconds between two looks of a scheduler that stands by or waits for its broker.
LOOK = 0.5


class OneAtATime(Scheduler):
    """Put before any of Celery's schedulers by :func:`scheduler_class`.

    Only with the baton does it send. What another one sent meanwhile is read from the broker
    as soon as it takes over. A run whose sending fails is still due.
    """

    settings: Settings
    #: Told of what it does, in words (``leads``, ``stands by …``), and at every turn.
    on_turn: Callable[[str], None]
    longest: float
    _baton: Baton | FileBaton | None = None
    _runs: Runs | None = None
    _taken = 0
    _told = ""
    _failed_at = 0.0

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
            return LOOK
        wait = self._tried(lambda: self._work(*args, **kwargs))
        return LOOK if wait is None else wait

    def _work(self, *args: Any, **kwargs: Any) -> float:
        if self._baton is None:
            self._open()
        if self._baton is None or not self._baton.held:
            self._stand_by()
            return LOOK
        if self._baton.taken != self._taken:
            self._take_over()
        return float(super().tick(*args, **kwargs) or 0)

    def _is_back(self) -> bool:
        """Whether the broker has answered the baton's thread since sending failed."""
        return isinstance(self._baton, Baton) and self._baton.reached > self._failed_at

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

    def apply_entry(self, entry: ScheduleEntry, producer: Producer | None = None) -> None:
        """Send one run; if it cannot be sent now it stays due."""
        if self._tried(lambda: self._apply(entry, producer)) is None:
            self._put_back(entry)

    def _apply(self, entry: ScheduleEntry, producer: Producer | None) -> bool:
        advanced = self.schedule[entry.name]
        if isinstance(producer, FencedProducer):
            run = Run(advanced.last_run_at, advanced.total_run_count)
            producer.sending = Sending(entry.name, entry.last_run_at.isoformat(), run)
        try:
            self.apply_async(entry, producer=producer, advance=False)
        except Exception as error:  # noqa: BLE001 (told below)
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
        logger.info("sent %s (%s)", entry.name, entry.task)
        return True

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
            if isinstance(self._baton, Baton) and self._runs is not None:
                found = FencedProducer(self.connection, auto_declare=False)
                found.baton, found.runs = self._baton, self._runs
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
        """Get in line for the baton. Raises the connection's errors."""
        if not on_redis(self.connection):
            path = self.settings.run_dir.absolute() / "beat.lock"
            logger.warning(
                "this broker keeps no lock: one scheduler per run directory is made sure of "
                "(%s), run no other one elsewhere",
                path,
            )
            self._baton = FileBaton(path)
            self._baton.start()
            return
        server = server_of(self.app.connection_for_write())
        if server is not None:
            name = beat_name(self.app, self.settings)
            self._runs = Runs(server, name)
            self._baton = Baton(server, name, self.settings.beat.lock)
            self._baton.start()

    def _stand_by(self) -> None:
        bearer = self._baton.bearer if self._baton is not None else ""
        if self._baton is not None and bearer == self._baton.me:  # not heard of it for too long
            self._tell("waits for the broker")
            return
        self._tell(f"stands by: the scheduler at work is {bearer or 'not known'}")

    def _take_over(self) -> None:
        """Go on where the last scheduler ended."""
        assert self._baton is not None  # noqa: S101 (it is held)
        if self._runs is not None:
            self._go_on(self._runs)
        self._taken = self._baton.taken
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
                runs.note(name, Run(entry.last_run_at, 0))
                continue
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
        runs.note(entry.name, Run(now, entry.total_run_count))
        return f"{what}: they are skipped"

    def _tell(self, words: str) -> None:
        """One line for each change."""
        if words != self._told:
            self._told = words
            logger.info("the scheduler %s", words)

    def close(self) -> None:
        """Celery calls it more than once."""
        baton, self._baton = self._baton, None
        if baton is not None:
            baton.stop()
        super().close()


def scheduler_class(
    app: Celery, settings: Settings, on_turn: Callable[[str], None], longest: float
) -> type[OneAtATime]:
    """The scheduler of ``beat_scheduler`` if the application sets one, else Celery's; where
    the broker remembers the runs it needs no file. ``longest``: seconds between turns at most.
    """
    remembers = on_redis(app.connection_for_write())
    base: Any = Scheduler if remembers else PersistentScheduler
    if app.conf.value_set_for("beat_scheduler"):
        base = symbol_by_name(app.conf.beat_scheduler)
    members = {"settings": settings, "on_turn": staticmethod(on_turn), "longest": longest}
    return type("CelerysScheduler", (OneAtATime, base), members)
