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
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

from celery.utils.saferepr import saferepr
from kombu.utils.json import dumps

from cloche.broker import message

_KINDS = ("id", "args", "kw", "body", "tag", "at", "eta", "wait", "reply", "clock", "now")
_MARKS = [f"@@cloche-{kind}@@" for kind in _KINDS]
_ID, _ARGS, _KWARGS, _BODY, _TAG, _AT, _ETA, _WAIT, _REPLY, _CLOCK, _NOW = _MARKS
_BODY_AT, _CLOCK_AT = _MARKS.index(_BODY), _MARKS.index(_CLOCK)
_MARK = re.compile(
    '"@@cloche-(?:at|wait|clock|now)@@"|@@cloche-(?:id|args|kw|body|tag|eta|reply)@@'
)
_encode = json.JSONEncoder().encode
_SCALARS = frozenset({int, float, bool, type(None)})
_QUOTES = re.compile(r"['\"\\]")

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
}

#: What goes to the places of a text, in the order of ``_KINDS``.
Values = list[str]


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
        chosen: tuple[str, ...] = self._chosen(values)
        return self._format % chosen[:-1]


class Template:
    """Text of messages of one task with one set of options, but for when it is due.

    ``delayed``: whether the messages have an ``eta``.
    """

    def __init__(self, envelope: message.Envelope) -> None:
        envelope = _plain(envelope)
        _, _, embed = json.loads(base64.b64decode(envelope["body"]))
        self.delayed = bool(envelope["headers"].get("eta"))
        if self.delayed:
            envelope["headers"].update({"eta": _ETA, message.DELAY: _WAIT})
        envelope["body"] = _BODY
        envelope["properties"].update(delivery_tag=_TAG, timestamp=_AT)
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
            f"{now:.3f}",
            eta,
            str(wait),
            reply,
            "0",
            repr(now),
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
        own[_CLOCK_AT] = str(clock)
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


def check_arguments(task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise TypeError if the task does not take them, as Celery does (Task.apply_async)."""
    header = getattr(task, "__header__", None)
    if header is not None and getattr(task, "typing", False):
        header(*args, **kwargs)


def new_ids(count: int) -> list[str]:
    """``count`` random UUIDs (version 4), read from the kernel at once."""
    digits = os.urandom(16 * count).hex()
    return [
        f"{digits[i : i + 8]}-{digits[i + 8 : i + 12]}-4{digits[i + 13 : i + 16]}"
        f"-a{digits[i + 17 : i + 20]}-{digits[i + 20 : i + 32]}"
        for i in range(0, len(digits), 32)
    ]


def _json(value: Any) -> str:
    try:
        return _encode(value)
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
    if all(map(_is_plain, items)):
        text = repr(value)
        if len(text) <= REPR_LIMIT:
            return text  # nothing in it to escape
    return _encode(saferepr(value, REPR_LIMIT))[1:-1]
