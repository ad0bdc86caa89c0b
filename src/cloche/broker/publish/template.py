"""A message made once by Celery, then filled in for each task: 10 µs instead of 500.

Celery's own code builds the first message (routing, options, headers); its text is cut at the
places that differ from task to task. So the format is Celery's, whatever its version.
"""

from __future__ import annotations

import base64
import json
import os
import re
import time
from binascii import b2a_base64
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from celery import Task
from celery.utils.saferepr import saferepr
from kombu import Producer
from kombu.utils.json import dumps

from cloche.broker import message
from cloche.broker.message import Envelope
from cloche.process_local import ProcessLocal

_KINDS = ("id", "args", "kw", "body", "tag", "at", "eta", "wait", "reply", "clock", "now")

_MARKS = [f"@@cloche-{kind}@@" for kind in _KINDS]

_ID, _ARGS, _KWARGS, _BODY, _TAG, _AT, _ETA, _WAIT, _REPLY, _CLOCK, _NOW = _MARKS

_BODY_AT, _CLOCK_AT = _MARKS.index(_BODY), _MARKS.index(_CLOCK)

_MARK = re.compile(
    '"@@cloche-(?:at|wait|clock|now)@@"|@@cloche-(?:id|args|kw|body|tag|eta|reply)@@'
)

#: What JSONEncoder().encode makes for each call: a third of the time. Without its look for circles,
#: which end in a RecursionError. None where there is no C.
_chunks: Any = json.encoder.c_make_encoder and json.encoder.c_make_encoder(  # type: ignore[attr-defined]
    None,
    json.JSONEncoder().default,
    json.encoder.encode_basestring_ascii,
    None,
    ": ",
    ", ",
    False,
    False,
    True,
)

_SCALARS = frozenset({int, float, bool, type(None)})

_QUOTES = re.compile(r"['\"\\]")

#: The two bits of an id that say how to read it (RFC 9562, 4.1), for each random digit.
_VARIANTS = {f"{n:x}": "89ab"[n % 4] for n in range(16)}

#: Celery's default for argsrepr_maxsize and kwargsrepr_maxsize (celery/app/amqp.py).
REPR_LIMIT = 1024

#: Celery's default for ``task_repr_maxlevels``, and saferepr's.
REPR_LEVELS = 3

#: Options with which Celery is asked for the sample.
SAMPLE: dict[str, Any] = {
    "task_id": _ID,
    "argsrepr": _ARGS,
    "kwargsrepr": _KWARGS,
    "reply_to": _REPLY,
    "add_to_parent": False,
}

#: What goes to the places of a text, in the order of ``_KINDS``.
Values = list[str | float]

#: A message on its way: its queue, its priority's suffix, its envelope.
Captured = tuple[str, str, Envelope]


class NotTemplatableError(Exception):
    """The message cannot be filled in: not JSON, compressed, signed, …"""


class _Cut:
    """A text with places to fill in."""

    def __init__(self, text: str) -> None:
        kinds = [_MARKS.index(mark.strip('"')) for mark in _MARK.findall(text)]
        self._format = "%s".join(part.replace("%", "%%") for part in _MARK.split(text))
        # Of one place itemgetter would make no tuple; the last one is cut off again.
        self._chosen = itemgetter(*kinds, 0)

    def fill(self, values: Values) -> str:
        """The text; in C, as every message pays for it."""
        chosen: tuple[str | float, ...] = self._chosen(values)
        return self._format % chosen[:-1]


class Template:
    """Text of messages of one task with one set of options, but for when it is due.

    ``eta``: when the message it was made of is due (ISO 8601), None if at once; ``expires``:
    whether it has a time after which it is not to be run, which is left as it is.
    Raises NotTemplatableError.
    """

    def __init__(self, envelope: message.Envelope) -> None:
        envelope = _plain(envelope)
        body = json.loads(base64.b64decode(envelope["body"]))
        if envelope["headers"].get("id") != _ID or type(body) is not list or len(body) != 3:
            raise NotTemplatableError  # task_protocol 1
        embed = body[2]
        self.expires = bool(envelope["headers"].get("expires"))
        self.eta: str | None = envelope["headers"].get("eta")
        if self.eta:
            envelope["headers"]["eta"] = _ETA
        own = {message.AT: _AT, **({message.WAITED: _WAIT} if self.eta else {})}
        envelope.update({"body": _BODY, message.OWN: own})
        envelope["properties"]["delivery_tag"] = _TAG
        for name in ("argsrepr", "kwargsrepr"):
            envelope["properties"].pop(name, None)  # Celery passes unknown options on
        self._embed = dumps(embed)
        self._text = _Cut(dumps(envelope))

    def text(self, values: Values) -> str:
        """The text with these values."""
        return self._text.fill(values)

    def body(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """The body as it stands in the message. Raises kombu's EncodeError or TypeError."""
        text = f"[{_json(args)}, {_json(kwargs) if kwargs else '{}'}, {self._embed}]"
        return b2a_base64(text.encode(), newline=False).decode()

    def values(
        self,
        task_id: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        eta: str = "",
        wait: int = 0,
        reply: str = "",
    ) -> Values:
        """What one message has at its places: due at ``eta``, in ``wait`` ms, answers to ``reply``.

        Raises kombu's EncodeError or TypeError.
        """
        now = time.time()
        return [
            task_id,
            _repr_json(args),
            _repr_json(kwargs) if kwargs else "{}",
            self.body(args, kwargs),
            task_id,
            now,
            eta,
            wait,
            reply,
            0,
            now,
        ]


class EventTemplate:
    """Text of the ``task-sent`` events that go with such messages."""

    def __init__(self, envelope: message.Envelope) -> None:
        envelope = _plain(envelope)
        event = json.loads(base64.b64decode(envelope["body"]))
        event.update(clock=_CLOCK, timestamp=_NOW)
        self._event = _Cut(dumps(event))
        envelope["body"] = _BODY
        envelope["properties"]["delivery_tag"] = _TAG
        self._text = _Cut(dumps(envelope))

    def fill(self, values: Values, clock: int) -> str:
        """The event for the message with these values, at Celery's logical time."""
        own = [*values]
        own[_CLOCK_AT] = clock
        own[_BODY_AT] = b2a_base64(self._event.fill(own).encode(), newline=False).decode()
        return self._text.fill(own)


def _plain(envelope: message.Envelope) -> message.Envelope:
    """A copy. Raises NotTemplatableError unless its body is JSON in base64."""
    copy: message.Envelope = json.loads(dumps(envelope))
    if (
        copy.get("content-type") != "application/json"
        or copy["properties"].get("body_encoding") != "base64"
        or copy["headers"].get("compression")
    ):
        raise NotTemplatableError
    return copy


def check_arguments(task: Task, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise TypeError if the task does not take them, as Celery does (Task.apply_async)."""
    header = getattr(task, "__header__", None)
    if header is not None and getattr(task, "typing", False):
        header(*args, **kwargs)


def new_id() -> str:
    """A random UUID (version 4), at a fifth of the cost of the standard library's.

    What is drawn ahead is this process's: a forked one draws its own.
    """
    drawn = _drawn.get()
    try:
        return drawn.pop()  # whatever thread comes: each takes another one
    except IndexError:
        digits = os.urandom(16 * _IDS).hex()
        first, *others = [_id_of(digits[at : at + 32]) for at in range(0, 32 * _IDS, 32)]
        drawn.extend(others)
        return first


#: Ids drawn at once.
_IDS = 64
_drawn: ProcessLocal[list[str]] = ProcessLocal(list)


def _id_of(digits: str) -> str:
    variant = _VARIANTS[digits[16]]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


def _json(value: Any) -> str:
    try:
        return "".join(_chunks(value, 0)) if _chunks else json.dumps(value)
    except TypeError:
        return str(dumps(value))  # dates, UUIDs, …: kombu's own way


def _is_plain(item: Any) -> bool:
    """Whether saferepr would write what repr writes."""
    if type(item) is str:
        return item.isascii() and item.isprintable() and not _QUOTES.search(item)
    return type(item) in _SCALARS


def _repr_json(value: Any) -> str:
    """What Celery has as ``argsrepr``, as it stands between the quotes of a JSON text."""
    items = (*value, *value.values()) if isinstance(value, Mapping) else value
    if _SCALARS.issuperset(map(type, items)) or all(map(_is_plain, items)):
        text = repr(value)
        if len(text) <= REPR_LIMIT:
            return text  # nothing in it to escape
    return json.dumps(saferepr(value, REPR_LIMIT))[1:-1]


@dataclass(slots=True)
class Capture:
    """What was collected; ``broadcasts`` (channels of the server, message) if those are, too."""

    messages: list[Captured] = field(default_factory=list)
    broadcasts: list[tuple[list[str], Envelope]] | None = None


@contextmanager
def capturing(producer: Producer, *, broadcasts: bool = False) -> Iterator[Capture]:
    """Within it, nothing leaves on the connection of ``producer``.

    On whatever channel: kombu repeats a publish on a new one when the server was lost.
    """
    connection = vars(producer.connection)
    found = Capture(broadcasts=[] if broadcasts else None)
    connection[_NAME] = found
    try:
        yield found
    finally:
        del connection[_NAME]


def capture_of(channel: Any) -> Capture | None:
    """The one that takes what ``channel`` is to send, if one does."""
    connection = getattr(channel.connection, "client", None)
    return None if connection is None else vars(connection).get(_NAME)


_NAME = "_cloche_capture"
