"""When each schedule ran last, kept on the broker beside the tasks themselves."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from kombu import Producer
from kombu.utils.json import dumps

from cloche.broker import delayed, lua
from cloche.broker.baton import Baton, Server
from cloche.broker.channel import Captured, Channel
from cloche.errors import NotInChargeError


@dataclass(frozen=True, slots=True)
class Run:
    """The last run of a schedule; ``count`` 0: none yet, ``at`` is when it became known."""

    at: datetime
    count: int

    @property
    def text(self) -> str:
        """As the server keeps it."""
        return orjson.dumps({"at": self.at.isoformat(), "count": self.count}).decode()


class Runs:
    """The runs of all schedules of one scheduler's name."""

    def __init__(self, server: Server, name: str) -> None:
        self._server = server
        self.key = f"{server.keys.own}{name}:runs"

    def read(self) -> dict[str, Run]:
        """By schedule. Raises what redis-py raises."""
        found: Any = self._server.client.hgetall(self.key)
        runs = {_text(name): _parsed(_text(value)) for name, value in found.items()}
        return {name: run for name, run in runs.items() if run is not None}

    def note(self, name: str, run: Run, after: str = "-") -> None:
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
    run: Run
    sent: bool = False


class FencedProducer(Producer):
    """Publishes runs of schedules only with the baton, and each only once.

    On Cloche's transport the server checks as it takes the message; on kombu's own it is asked
    just before. Set ``sending`` before each run.
    """

    baton: Baton
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
            self._send(channel, sending, self._captured(channel, *args, **options))
        else:
            self._check(sending)
            super()._publish(*args, **options)
            self.runs.note(sending.name, sending.run, sending.after)
        sending.sent = True
        return None

    def _captured(self, channel: Channel, *args: Any, **options: Any) -> list[Captured]:
        """What kombu would put into queues, one entry for each queue."""
        captured: list[Captured] = []
        channel.captured = captured
        try:
            super()._publish(*args, **options)
        finally:
            channel.captured = None
        return captured

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
        lists = [keys.queue(queue, suffix), keys.bell(queue), keys.consumed]
        reply = lua.BATON_SEND.run(
            channel.own,
            [self.baton.key, self.runs.key, *lists],
            [self.baton.me, sending.name, sending.after, sending.run.text, queue, text],
        )
        if reply == 0:
            self._refuse(sending)

    def _check(self, sending: Sending) -> None:
        if not self.baton.confirm():
            self._refuse(sending)

    def _refuse(self, sending: Sending) -> None:
        self.baton.lost()
        raise NotInChargeError(f"{sending.name} was not sent: another scheduler took over")


def _parsed(value: str) -> Run | None:
    try:
        raw = orjson.loads(value.partition(" ")[2])
        return Run(datetime.fromisoformat(raw["at"]), int(raw["count"]))
    except (ValueError, KeyError, TypeError):
        return None


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
