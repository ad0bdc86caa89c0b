"""Publishing many tasks: in chunks, each of which arrives as a whole or is reported."""

from __future__ import annotations

import itertools
import logging
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from celery import signals
from celery.app.base import Celery
from celery.canvas import Signature
from celery.local import Proxy

from cloche.backoff import Backoff
from cloche.broker import delayed, lua, message
from cloche.broker.channel import Captured, Channel
from cloche.broker.outage import ERRORS, plain
from cloche.broker.publish_template import (
    SAMPLE,
    NotTemplatableError,
    Template,
    check_arguments,
    new_ids,
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
        """Whether all arrived."""
        return not self.failed

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(slots=True)
class _Made:
    """A message ready to send."""

    id: str
    queue: str
    suffix: str
    wait: int
    text: str


def map_delay(task: Any, items: Iterable[Any], **options: Any) -> Published:
    """``task.delay(item)`` for every item; ``options`` as for ``apply_async``."""
    return _publish(task.app, _calls(task, (((item,), None) for item in items), options))


def starmap_delay(task: Any, items: Iterable[Any], **options: Any) -> Published:
    """``task.delay(*item)`` for every item, or ``**item`` for mappings."""
    pairs = (((), item) if isinstance(item, Mapping) else (tuple(item), None) for item in items)
    return _publish(task.app, _calls(task, pairs, options))


def publish_many(app: Celery, signatures: Iterable[Any]) -> Published:
    """Send signatures: plain ones in bulk; chains, groups and chords one by one, in between."""
    return _publish(app, (_Call.of(app, one) for one in signatures))


@dataclass(frozen=True, slots=True)
class _Call:
    """One task to send. ``kind`` is the same for calls that differ in arguments alone."""

    signature: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    options: dict[str, Any]
    kind: object

    def apply(self, producer: Any, sample: Mapping[str, Any]) -> Any:
        """Let Celery publish it."""
        if isinstance(self.signature, Signature):  # has its arguments and options in itself
            return self.signature.apply_async(producer=producer, **sample)
        options = {**self.options, **sample}
        return self.signature.apply_async(self.args, self.kwargs, producer=producer, **options)

    @classmethod
    def of(cls, app: Celery, signature: Any) -> _Call:
        found = app.signature(signature)
        options = dict(found.options)
        kind: object = None
        if type(found) is Signature and "task_id" not in options:
            try:
                fixed = {name: value for name, value in options.items() if name not in _DUE}
                kind = (found.task, _due(options) is None, tuple(sorted(fixed.items())))
                hash(kind)
            except TypeError:
                kind = None
        return cls(found, tuple(found.args), dict(found.kwargs), options, kind)


#: Options that tell when a task is due.
_DUE = frozenset({"countdown", "eta"})


def _due(options: Mapping[str, Any]) -> datetime | None:
    """When a task with these options is due; None if at once."""
    if not options:
        return None
    if options.get("countdown"):
        return datetime.now(UTC) + timedelta(seconds=options["countdown"])
    return delayed.parse(options.get("eta"))


def _calls(task: Any, pairs: Iterable[tuple[Any, Any]], options: dict[str, Any]) -> Iterator[_Call]:
    kind = object()
    if isinstance(task, Proxy):  # asking it costs more than the rest
        task = task._get_current_object()
    for args, kwargs in pairs:
        yield _Call(task, args, kwargs or {}, options, kind)


def _publish(app: Celery, calls: Iterable[_Call]) -> Published:
    published = Published()
    with app.producer_or_acquire() as producer:
        channel = producer.channel
        if not isinstance(channel, Channel):
            _one_by_one(producer, calls, published)
            return published
        making = _Making(app, producer, channel)
        for chunk in _chunks(itertools.chain.from_iterable(map(making.make, calls))):
            _send(channel, chunk, published)
    return published


def _one_by_one(producer: Any, calls: Iterable[_Call], published: Published) -> None:
    for call in calls:
        published.ids.append(call.apply(producer, {}).id)


class _Making:
    """Turns calls into messages: from a template where that is possible, else by Celery."""

    def __init__(self, app: Celery, producer: Any, channel: Channel) -> None:
        self._producer = producer
        self._channel = channel
        self._templates: dict[object, list[tuple[str, str, Template]] | None] = {}
        self._ids: Iterator[str] = iter(())
        self._reply = app.thread_oid
        # Who listens to each publish must hear of each.
        self._plain = not (
            signals.before_task_publish.receivers
            or signals.after_task_publish.receivers
            or app.conf.task_send_sent_event
        )

    def make(self, call: _Call) -> Iterator[_Made]:
        templates = self._templates_of(call) if self._plain and call.kind is not None else None
        if templates is None:
            for captured in self._capture(call, {}):
                yield _made(captured)
            return
        check_arguments(call.signature, call.args, call.kwargs)
        task_id = self._next_id()
        due = _due(call.options)
        eta = due.isoformat() if due else ""
        wait = delayed.wait_until(due) if due else 0
        for queue, suffix, template in templates:
            values = template.values(task_id, call.args, call.kwargs, eta, wait, self._reply)
            text = template.text(values)
            yield _Made(task_id, queue, suffix, wait, text)

    def _next_id(self) -> str:
        found = next(self._ids, None)
        if found is None:
            self._ids = iter(new_ids(CHUNK))
            found = next(self._ids)
        return found

    def _templates_of(self, call: _Call) -> list[tuple[str, str, Template]] | None:
        if call.kind not in self._templates:
            self._templates[call.kind] = self._new_templates(call)
        return self._templates[call.kind]

    def _new_templates(self, call: _Call) -> list[tuple[str, str, Template]] | None:
        try:
            made = [
                (queue, suffix, Template(envelope))
                for queue, suffix, envelope in self._capture(call, SAMPLE)
            ]
        except NotTemplatableError:
            return None
        # Celery may know another meaning of what it was given (a task's own default eta).
        known = _due(call.options) is not None
        return made if all(one.delayed == known for _, _, one in made) else None

    def _capture(self, call: _Call, sample: Mapping[str, Any]) -> list[Captured]:
        captured: list[Captured] = []
        self._channel.captured = captured
        try:
            call.apply(self._producer, sample)
        finally:
            self._channel.captured = None
        return captured


def _made(captured: Captured) -> _Made:
    queue, suffix, envelope = captured
    wait = delayed.delay_of(envelope) or 0
    if wait:
        envelope["headers"][message.DELAY] = wait
    return _Made(delayed.identity(envelope), queue, suffix, wait, message.encode(envelope))


def _chunks(messages: Iterable[_Made]) -> Iterator[list[_Made]]:
    """Runs of messages to the same place, each small enough for one command."""
    chunk: list[_Made] = []
    size = 0
    for one in messages:
        size += len(one.text)
        if chunk and (
            len(chunk) >= CHUNK
            or size > CHUNK_BYTES
            or (one.queue, one.suffix) != (chunk[0].queue, chunk[0].suffix)
            or bool(one.wait) != bool(chunk[0].wait)
        ):
            yield chunk
            chunk, size = [], len(one.text)
        chunk.append(one)
    if chunk:
        yield chunk


def _send(channel: Channel, chunk: list[_Made], published: Published) -> None:
    marker = channel.keys.batch(uuid.uuid4().hex)
    ids = [one.id for one in chunk]
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
            keys.bell(first.queue),
            keys.consumed,
            marker,
        ]
        texts = [one.text for one in chunk]
        lua.PUBLISH_MANY.run(channel.own, names, [first.queue, REMEMBER, *texts])
