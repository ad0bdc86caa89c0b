"""Where a batch goes: to the broker, and while it is away where ``logs.fallback`` says."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from celery import Celery

from cloche.broker.channel import Channel
from cloche.broker.connection.outage import Outage
from cloche.errors import DatabaseError, SettingsError, SpoolFullError
from cloche.logs.write.counts import Counts, LogDirectory
from cloche.logs.write.spool import ProcessSpool, RecordSpool, lines_of, orphans
from cloche.logs.write.writer import Writer
from cloche.settings.model import LogSettings, Settings

logger = logging.getLogger(__name__)

#: The task that stores a batch; its only argument is the lines, as one text.
WRITE = "cloche.logs.write"

#: Seconds between two looks at the queue's length.
_LOOK_EVERY = 1.0

#: Seconds that closing waits for a send that goes on.
_SEND_TIMEOUT = 0.5


class BatchPublisher:
    """One connection of our own: a publisher that hangs holds up nobody but the log."""

    def __init__(self, app: Celery, queue: str, max_queued: int) -> None:
        self._app = app
        self._queue = queue
        self._max_queued = max_queued
        self._connection: Any = None
        self._producer: Any = None
        self._look_at = 0.0
        self.outage = Outage("the execution log's messages")

    def send(self, lines: bytes, count: int) -> bool:
        """Whether the broker has the batch now. Asks seldom while it is away."""
        if self.outage.pausing:
            return False
        try:
            self._check_length()
            self._app.send_task(
                WRITE,
                args=[lines.decode()],
                argsrepr=f"({count} records)",
                kwargsrepr="{}",
                queue=self._queue,
                producer=self._connected(),
                ignore_result=True,
                retry=False,
                add_to_parent=False,
            )
        except Exception as error:  # noqa: BLE001 (each transport has errors of its own)
            self.outage.failed(error)
            self.disconnect()
            return False
        self.outage.over()
        return True

    def disconnect(self) -> None:
        """Close the connection; the next batch opens another."""
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            with suppress(Exception):
                connection.collapse()

    def abandon(self) -> None:
        """In a forked child: the connection is the parent's."""
        self._connection = self._producer = None
        self.outage = Outage("the execution log's messages")

    def _connected(self) -> Any:
        if self._producer is None:
            self._connection = self._app.connection_for_write()
            self._connection._ensure_connection(max_retries=0)
            self._producer = self._app.amqp.Producer(self._connection.channel())
        return self._producer

    def _check_length(self) -> None:
        """Raises OSError while more waits there than the settings allow."""
        now = time.monotonic()
        if now < self._look_at:
            return
        channel = self._connected().channel
        queue = self._app.amqp.queues[self._queue].bind(channel)
        length = queue.queue_declare().message_count
        if isinstance(channel, Channel):  # what waits for its database is delayed by the broker
            length += channel.own.zcard(channel.keys.delayed(self._queue))
        if length >= self._max_queued:
            raise OSError(f"{length} messages wait in the queue {self._queue} (logs.max_queued)")
        self._look_at = now + _LOOK_EVERY


class Shipper:
    """Every batch it is given has a place when it returns, or is counted as dropped.

    One batch at a time; `keep` may be called meanwhile, from any thread.
    """

    def __init__(self, app: Celery, settings: Settings, logs: LogSettings) -> None:
        self.place = LogDirectory(settings.run_dir)
        self.counts = Counts(self.place)
        self.spool = RecordSpool(self.place.spool, limit=logs.max_spool, fsync=logs.fsync)
        family = settings.families.get("logs")
        if family is None:
            raise SettingsError(
                "this application has no execution log",
                why="Cloche did not make it, and adds no queue, task or table unasked",
                fix="write [families.logs] in cloche.toml, or set CLOCHE_FAMILIES='{\"logs\": {}}'",
            )
        queue = family.queue or app.conf.task_default_queue
        self._broker = BatchPublisher(app, queue, logs.max_queued)
        self._settings = settings
        self._logs = logs
        self._writer: Writer | None = None
        self._one = threading.Lock()

    def ship(self, lines: Sequence[bytes]) -> None:
        """Send these; what waits on disk goes first, so that the order stays."""
        with self._one:
            if not (self._replayed() and self._sent(lines)):
                self._fall_back(lines)

    def keep(self, lines: bytes, count: int) -> bool:
        """On the disk of this machine, or dropped; whether it is there."""
        try:
            self.spool.append(lines)
        except SpoolFullError:
            self.counts.drop("spool full", count)
        except OSError as error:
            self.counts.drop(f"spool failed ({error.strerror})", count)
        else:
            self.counts.add("spooled", count)
            return True
        return False

    def replay(self) -> bool:
        """Send what this process keeps; whether nothing is left."""
        with self._one:
            return self._replayed()

    def adopt(self) -> int:
        """Send what ended processes left; how many records there were."""
        with self._one:
            return sum(map(self._adopted, orphans(self.place.spool)))

    def close(self) -> None:
        """Close connections. What is on disk stays for the next process.

        Whoever hangs in a send keeps his until it ends, or the process does.
        """
        self.counts.tell()
        if not self._one.acquire(timeout=_SEND_TIMEOUT):
            return
        try:
            self.spool.close()
            self._broker.disconnect()
            if self._writer is not None:
                self._writer.close()
        finally:
            self._one.release()

    def abandon(self) -> None:
        """In a forked child: nothing that the parent has open is used."""
        self._one = threading.Lock()
        self.spool.abandon()
        self._broker.abandon()
        self.counts = Counts(self.place)
        self._writer = None  # its locks may have been held by a thread of the parent

    def _sent(self, lines: Sequence[bytes]) -> bool:
        if not self._broker.send(b"".join(lines), len(lines)):
            return False
        self.counts.add("sent", len(lines))
        return True

    def _fall_back(self, lines: Sequence[bytes]) -> None:
        mode = self.place.mode(self._logs.fallback)
        if mode == "drop":
            self.counts.drop("broker away", len(lines))
        elif mode == "spool" or not self._written(lines):
            self.keep(b"".join(lines), len(lines))

    def _written(self, lines: Sequence[bytes]) -> bool:
        """Straight to the database, which dedupes what the broker delivers all the same."""
        if self._writer is None:
            self._writer = Writer(self._settings)
        try:
            self._writer.write(lines)
        except DatabaseError as error:
            logger.debug("not written directly: %s", error)
            return False
        self.counts.add("direct", len(lines))
        return True

    def _replayed(self) -> bool:
        for segment in self.spool.sealed():
            if not self._emptied(segment):
                return False
            self.spool.done(segment)
        return True

    def _emptied(self, segment: Path) -> bool:
        """Whether all its lines have a better place now."""
        lines, torn = lines_of(segment)
        for batch in batches(lines, self._logs):
            if not self._sent(batch) and not (self._mode_is_direct() and self._written(batch)):
                return False
        if torn:
            logger.warning("%s ends in an unfinished line, which was never accepted", segment)
        self.counts.add("replayed", len(lines))
        return True

    def _mode_is_direct(self) -> bool:
        return self.place.mode(self._logs.fallback) == "direct"

    def _adopted(self, drawer: ProcessSpool) -> int:
        records = 0
        for segment in drawer.segments():
            if not self._emptied(segment):
                break
            records += len(lines_of(segment)[0])
            segment.unlink()
        drawer.remove() if not drawer.segments() else drawer.release()
        return records


def batches(lines: Sequence[bytes], logs: LogSettings) -> Iterator[Sequence[bytes]]:
    """Cut where a message is full."""
    start = size = 0
    for end, line in enumerate(lines):
        if end > start and (
            end - start >= logs.max_batch or size + len(line) > logs.max_batch_size
        ):
            yield lines[start:end]
            start, size = end, 0
        size += len(line)
    if start < len(lines):
        yield lines[start:]
