"""Publishing many tasks: in chunks, each of which arrives as a whole or is reported."""

from __future__ import annotations

import itertools
import logging
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from celery import Task, signals
from celery.app.base import Celery
from celery.canvas import Signature
from celery.local import Proxy
from celery.utils.time import add_seconds_to_datetime
from kombu import Producer
from kombu.exceptions import OperationalError

from cloche.backoff import Backoff
from cloche.broker import delayed, lua, message
from cloche.broker.channel import Channel
from cloche.broker.connection.outage import ERRORS, plain
from cloche.broker.publish.stock_path import is_celerys, sends_itself
from cloche.broker.publish.template import (
    SAMPLE,
    Captured,
    NotTemplatableError,
    Template,
    capturing,
    check_arguments,
    new_id,
)

logger = logging.getLogger("cloche.transport")

#: Tasks in a chunk: one command, one round trip.
CHUNK = 1000

#: Bytes after which a chunk is sent although it has fewer tasks.
CHUNK_BYTES = 4_000_000

#: Seconds the server remembers a chunk, so that a retry cannot publish it twice.
REMEMBER = 600

_RETRIES = Backoff(first=0.1, factor=3, limit=2, jitter=0.3)
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class FailedChunk:
    """Tasks that were not published, and why."""

    ids: tuple[str, ...]
    error: str


@dataclass(slots=True)
class Published:
    """What became of a bulk publish: ``ids`` arrived, ``failed`` did not."""

    ids: list[str] = field(default_factory=list)
    failed: list[FailedChunk] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.failed

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(slots=True)
class _Made:
    """A message ready to send; with ``sent`` it went another way already."""

    id: str
    queue: str
    suffix: str
    wait: int
    text: str
    sent: bool = False

    @property
    def place(self) -> tuple[str, str, bool, bool]:
        """The same for messages that may go together."""
        return self.queue, self.suffix, bool(self.wait), self.sent


def map_delay(task: Task, items: Iterable[Any], **options: Any) -> Published:
    """``task.delay(item)`` for every item; ``options`` as for ``apply_async``."""
    return _publish(task.app, _calls(task, (((item,), None) for item in items), options))


def starmap_delay(task: Task, items: Iterable[Any], **options: Any) -> Published:
    """``task.delay(*item)`` for every item, or ``**item`` for mappings."""
    pairs = (((), item) if isinstance(item, Mapping) else (tuple(item), None) for item in items)
    return _publish(task.app, _calls(task, pairs, options))


def publish_many(app: Celery, signatures: Iterable[Any]) -> Published:
    """Send signatures: plain ones in bulk; chains, groups and chords one by one, in between."""
    return _publish(app, (_Call.of(app, one) for one in signatures))


@dataclass(frozen=True, slots=True)
class _Call:
    """One task to send. ``kind`` is the same for calls that differ in arguments alone, and in when
    they are due; None for a call whose message Celery makes."""

    signature: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    options: dict[str, Any]
    kind: object | None

    def apply(self, producer: Producer, sample: Mapping[str, Any]) -> Any:
        """Let Celery publish it."""
        if isinstance(self.signature, Signature):  # has its arguments and options in itself
            return self.signature.apply_async(producer=producer, **sample)
        options = {**self.options, **sample}
        return self.signature.apply_async(self.args, self.kwargs, producer=producer, **options)

    @classmethod
    def of(cls, app: Celery, signature: Any) -> _Call:
        # Not a clone of one: its options are copied deeply, signatures among them to plain dicts.
        found = signature if isinstance(signature, Signature) else app.signature(signature)
        options = dict(found.options)
        kind: object | None = None
        if type(found) is Signature and "eta" not in options and not _OWN & options.keys():
            try:
                fixed = {name: value for name, value in options.items() if name != "countdown"}
                kind = (found.task, bool(options.get("countdown")), tuple(sorted(fixed.items())))
                hash(kind)
            except TypeError:
                kind = None
            if kind is not None and _task_sends_itself(app, found.task):
                kind = None
        return cls(found, tuple(found.args), dict(found.kwargs), options, kind)


#: Options that make each message another, or take the place of what is filled in.
_OWN = frozenset({*SAMPLE, "expires", "producer", "publisher", "connection"})


def _task_sends_itself(app: Celery, name: str) -> bool:
    task = app.tasks.get(name)
    return task is not None and sends_itself(task)


def _calls(
    task: Task, pairs: Iterable[tuple[Any, Any]], options: dict[str, Any]
) -> Iterator[_Call]:
    if isinstance(task, Proxy):  # asking it costs more than the rest
        task = task._get_current_object()
    kind = None if _OWN & options.keys() or sends_itself(task) else object()
    for args, kwargs in pairs:
        yield _Call(task, args, kwargs or {}, options, kind)


def _publish(app: Celery, calls: Iterable[_Call]) -> Published:
    published = Published()
    with app.producer_or_acquire() as producer:
        if not isinstance(producer.channel, Channel):
            _one_by_one(producer, calls, published)
            return published
        making = _Making(app, producer)
        for chunk in _chunks(itertools.chain.from_iterable(map(making.make, calls))):
            _send(producer, chunk, published)
    return published


def _one_by_one(producer: Producer, calls: Iterable[_Call], published: Published) -> None:
    for call in calls:
        published.ids.append(call.apply(producer, {}).id)


class _Making:
    """Turns calls into messages: from a template where that is possible, else by Celery."""

    def __init__(self, app: Celery, producer: Producer) -> None:
        self._producer = producer
        self._templates: dict[object, list[tuple[str, str, Template]] | None] = {}
        self._app = app
        self._reply = app.thread_oid
        self._parent = app.current_worker_task
        # Who listens to each publish must hear of each; run at once, a sample would be run.
        self._plain = not (
            app.conf.task_always_eager
            or signals.before_task_publish.receivers
            or signals.after_task_publish.receivers
            or app.conf.task_send_sent_event
        ) and is_celerys(app)

    def make(self, call: _Call) -> Iterator[_Made]:
        templates = self._templates_of(call)
        if templates is None:
            yield from self._by_celery(call)
            return
        check_arguments(call.signature, call.args, call.kwargs)
        try:
            made = self._filled_in(call, templates)
        except Exception:  # noqa: BLE001 (Celery says what cannot be encoded, in its own words)
            made = self._by_celery(call)
        else:
            self._tell_parent(made)
        yield from made

    def _filled_in(self, call: _Call, templates: list[tuple[str, str, Template]]) -> list[_Made]:
        task_id, made = new_id(), []
        countdown = call.options.get("countdown")
        for queue, suffix, template in templates:
            eta = self._due_in(countdown) if countdown else template.eta or ""
            due = delayed.parse(eta)
            wait = delayed.wait_until(due) if due else 0
            values = template.values(task_id, call.args, call.kwargs, eta, wait, self._reply)
            made.append(_Made(task_id, queue, suffix, wait, template.text(values)))
        return made

    def _due_in(self, countdown: float) -> str:
        """The ``eta`` that Celery writes for it (AMQP.as_task_v2)."""
        return str(add_seconds_to_datetime(self._app.now(), countdown).isoformat())

    def _tell_parent(self, made: list[_Made]) -> None:
        """The running task knows what it has sent, as ``request.children``."""
        if self._parent:
            for one in made:
                self._parent.add_trail(self._app.AsyncResult(one.id))

    def _templates_of(self, call: _Call) -> list[tuple[str, str, Template]] | None:
        if not self._plain or call.kind is None:
            return None
        if call.kind not in self._templates:
            try:
                self._templates[call.kind] = self._new_templates(call)
            except OperationalError:
                raise
            except Exception:  # noqa: BLE001 (of a sample: Celery says it in its own words)
                return None
        return self._templates[call.kind]

    def _new_templates(self, call: _Call) -> list[tuple[str, str, Template]] | None:
        try:
            made = [
                (queue, suffix, Template(envelope))
                for queue, suffix, envelope in self._capture(call, SAMPLE)[0]
            ]
        except NotTemplatableError:
            return None
        # An eta without a time zone is Celery's to understand.
        odd = any(one.expires or (one.eta and not delayed.parse(one.eta)) for _, _, one in made)
        return None if odd or not made else made

    def _by_celery(self, call: _Call) -> list[_Made]:
        captured, result = self._capture(call, {})
        if captured or result is None:
            return [_made(one) for one in captured]
        # It did not pass here: run at once, or sent on a connection of its own.
        return [_Made(result.id, "", "", 0, "", sent=True)]

    def _capture(self, call: _Call, sample: Mapping[str, Any]) -> tuple[list[Captured], Any]:
        """The messages, and what the call returned."""
        with capturing(self._producer) as captured:
            result = call.apply(self._producer, sample)
        return captured.messages, result


def _made(captured: Captured) -> _Made:
    queue, suffix, envelope = captured
    wait = delayed.delay_of(envelope) or 0
    if wait:
        message.own(envelope)[message.WAITED] = wait
    return _Made(delayed.identity(envelope), queue, suffix, wait, message.encode(envelope))


def _chunks(messages: Iterable[_Made]) -> Iterator[list[_Made]]:
    """Runs of messages to the same place, each small enough for one command."""
    chunk: list[_Made] = []
    size = 0
    try:
        for one in messages:
            size += len(one.text)
            if chunk and (len(chunk) >= CHUNK or size > CHUNK_BYTES or one.place != chunk[0].place):
                yield chunk
                chunk, size = [], len(one.text)
            chunk.append(one)
    except Exception:
        if chunk:  # sent before the one that cannot be, as a loop of delay() would
            yield chunk
        raise
    if chunk:
        yield chunk


def _send(producer: Producer, chunk: list[_Made], published: Published) -> None:
    ids = [one.id for one in chunk]
    if chunk[0].sent:
        published.ids += ids
        return
    channel = producer.channel  # another one, where the server was lost meanwhile
    if not isinstance(channel, Channel):
        error = "the connection went over to another kind of broker"
        published.failed.append(FailedChunk(tuple(ids), error))
        return
    marker = channel.keys.batch(uuid.uuid4().hex)
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _send_once(channel, chunk, marker)
        except ERRORS as error:
            if attempt == _ATTEMPTS or published.failed:
                published.failed.append(FailedChunk(tuple(ids), plain(error)))
                return
            time.sleep(_RETRIES.delay(attempt))
        else:
            published.ids += ids
            return


def _send_once(channel: Channel, chunk: list[_Made], marker: str) -> None:
    keys, first = channel.keys, chunk[0]
    if first.wait:
        names = [
            keys.delayed(first.queue),
            keys.delayed_messages(first.queue),
            keys.delaying,
            marker,
        ]
        triples: list[lua.Argument] = []
        for one in chunk:
            triples += [one.wait, one.id, f"{one.suffix}:{one.text}"]
        lua.PARK_MANY.run(channel.own, names, [first.queue, REMEMBER, *triples])
    else:
        names = [
            keys.queue(first.queue, first.suffix),
            keys.wakeup(first.queue),
            keys.consumed,
            marker,
        ]
        texts = [one.text for one in chunk]
        lua.PUBLISH_MANY.run(channel.own, names, [first.queue, REMEMBER, *texts])
