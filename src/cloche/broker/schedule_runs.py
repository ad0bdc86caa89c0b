"""When each schedule ran last, kept on the broker beside the tasks themselves."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from kombu import Producer
from kombu.utils.json import dumps

from cloche.broker import delayed, lua
from cloche.broker.channel import Channel
from cloche.broker.leader_lock import LeaderLock, LockServer
from cloche.broker.publish.template import Captured, capturing
from cloche.errors import NotInChargeError


@dataclass(frozen=True, slots=True)
class ScheduledRun:
    """The last run of a schedule; ``count`` 0: none yet, ``at`` is when it became known."""

    at: datetime
    count: int

    @property
    def text(self) -> str:
        """As the server keeps it."""
        return orjson.dumps({"at": self.at.isoformat(), "count": self.count}).decode()


class Runs:
    """The runs of all schedules of one scheduler's name."""

    def __init__(self, server: LockServer, name: str) -> None:
        self._server = server
        self.key = f"{server.keys.own}{name}:runs"

    def read(self) -> dict[str, ScheduledRun]:
        """By schedule. Raises what redis-py raises."""
        found: Any = self._server.client.hgetall(self.key)
        runs = {_text(name): _parsed(_text(value)) for name, value in found.items()}
        return {name: run for name, run in runs.items() if run is not None}

    def note(self, name: str, run: ScheduledRun, after: str = "-") -> None:
        """Remember a run, or a schedule that is new. Raises what redis-py raises."""
        self._server.client.hset(self.key, name, f"{after} {run.text}")

    def forget(self, *names: str) -> None:
        """These schedules are no more. Raises what redis-py raises."""
        if names:
            self._server.client.hdel(self.key, *names)


@dataclass(slots=True)
class Sending:
    """A run under way: of which schedule, after which run, and what to remember of it."""

    name: str
    after: str
    run: ScheduledRun
    sent: bool = False


class FencedProducer(Producer):
    """Publishes runs of schedules only with the leader lock, and each only once.

    On Cloche's transport the server checks as it takes the message; on kombu's own it is asked
    just before. Set ``sending`` before each run.
    """

    lock: LeaderLock
    runs: Runs
    sending: Sending | None = None

    def publish(self, *args: Any, **options: Any) -> Any:
        """As kombu's, without its own retries: a run that failed is still due."""
        return super().publish(*args, **{**options, "retry": False})

    def _publish(self, *args: Any, **options: Any) -> Any:
        sending = self.sending
        if sending is None or sending.sent:  # an event that tells of it
            return super()._publish(*args, **options)
        channel = self.channel
        if isinstance(channel, Channel):
            self._send(channel, sending, self._captured(*args, **options))
        else:
            self._check(sending)
            super()._publish(*args, **options)
            self.runs.note(sending.name, sending.run, sending.after)
        sending.sent = True
        return None

    def _captured(self, *args: Any, **options: Any) -> list[Captured]:
        """What kombu would put into queues, one entry for each queue."""
        with capturing(self) as captured:
            super()._publish(*args, **options)
        return captured.messages

    def _send(self, channel: Channel, sending: Sending, captured: list[Captured]) -> None:
        fenced = False
        for queue, suffix, envelope in captured:
            if fenced or delayed.delay_of(envelope) is not None:
                self._check(sending)
                channel.outbox.send(queue, suffix, envelope)
            else:
                self._send_fenced(channel, sending, queue, suffix, str(dumps(envelope)))
                fenced = True
        if not fenced:
            self.runs.note(sending.name, sending.run, sending.after)

    def _send_fenced(
        self, channel: Channel, sending: Sending, queue: str, suffix: str, text: str
    ) -> None:
        keys = channel.keys
        lists = [keys.queue(queue, suffix), keys.wakeup(queue), keys.consumed]
        reply = lua.LEADER_LOCK_SEND.run(
            channel.own,
            [self.lock.key, self.runs.key, *lists],
            [self.lock.me, sending.name, sending.after, sending.run.text, queue, text],
        )
        if reply == 0:
            self._refuse(sending)

    def _check(self, sending: Sending) -> None:
        if not self.lock.confirm():
            self._refuse(sending)

    def _refuse(self, sending: Sending) -> None:
        self.lock.lost()
        raise NotInChargeError(f"{sending.name} was not sent: another scheduler took over")


def _parsed(value: str) -> ScheduledRun | None:
    try:
        raw = orjson.loads(value.partition(" ")[2])
        return ScheduledRun(datetime.fromisoformat(raw["at"]), int(raw["count"]))
    except (ValueError, KeyError, TypeError):
        return None


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
