"""One state of a task on its way to the server, and how it gets there."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii
from typing import Any

import redis
from kombu.utils.encoding import ensure_bytes
from kombu.utils.json import dumps

from cloche.broker import lua
from cloche.broker.connection.commands import send_all

#: Of the integers written here; Python refuses to write huge ones (sys.set_int_max_str_digits).
_BITS = 64

_SCALARS = {None: "null", True: "true", False: "false"}


@dataclass(eq=False, slots=True)
class StateWrite:
    """One state to store: see store.lua for the fields and the reply."""

    key: str | bytes
    value: str | bytes
    seconds: int
    seen: str = ""

    def command(self, *, text: bool = False) -> list[Any]:
        """The words that store it, if that may be, and tell those who wait."""
        arguments: list[Any] = [self.value, self.seconds, self.seen]
        return lua.STORE.command([self.key], arguments, text=text)  # type: ignore[list-item]

    def judged(self, found: str | bytes) -> None:
        """What the script gave back may be replaced: the next attempt says so."""
        self.seen = hashlib.sha1(ensure_bytes(found), usedforsecurity=False).hexdigest()

    def send(self, client: redis.Redis) -> str | bytes | None:
        """None once it is stored, or a success is; else what is stored and only the client can
        read: :meth:`judged`, and sent again. Raises what redis-py raises.
        """
        (reply,) = send_stores(client, [self])
        if isinstance(reply, Exception):
            raise reply
        return None if isinstance(reply, int) else reply


def send_stores(client: redis.Redis, batch: list[StateWrite]) -> list[Any]:
    """All in one round trip. One reply each: 1 stored, 0 a success is stored, text to be judged,
    or an error.
    """
    replies = send_all(client, [one.command() for one in batch])
    if any(isinstance(reply, redis.exceptions.NoScriptError) for reply in replies):
        # Nothing was stored where the script is not known; elsewhere repeating does no harm.
        replies = send_all(client, [one.command(text=True) for one in batch])
    return replies


class PlainSuccess:
    """What one backend stores of a success whose value is a scalar: JSON, not extended."""

    def __init__(self, backend: Any) -> None:
        self._plain = (
            backend.serializer == "json"
            and backend.encoder is dumps
            and not backend.compression
            and not backend.app.conf.find_value_for_key("extended", "result")
        )
        zone = backend.app.timezone
        self._zone = None if str(zone) == "UTC" else zone

    def text(self, task_id: Any, result: Any, request: Any) -> str | None:
        """The text to store; None if the general way has to make it."""
        if not self._plain or type(task_id) is not str or not _simple(request):
            return None
        value = _plain_json(result)
        return None if value is None else self._text(task_id, value, request)

    def _text(self, task_id: str, value: str, request: Any) -> str:
        now = datetime.now(UTC) if self._zone is None else datetime.now(UTC).astimezone(self._zone)
        quoted = encode_basestring_ascii
        group = getattr(request, "group", None)
        parent = getattr(request, "parent_id", None)
        more = f'"group_id": {quoted(group)}, ' if group else ""
        if parent:
            more += f'"parent_id": {quoted(parent)}, '
        return (
            f'{{"status": "SUCCESS", "result": {value}, "traceback": null, "children": [], '
            f'"date_done": "{now.isoformat()}", {more}"task_id": {quoted(task_id)}}}'
        )


def _simple(request: Any) -> bool:
    """Whether it has no children; without a request the general way asks who runs here."""
    if request is None or getattr(request, "_children", None):
        return False
    named = (getattr(request, "group", None), getattr(request, "parent_id", None))
    return all(name is None or type(name) is str for name in named)


def _plain_json(result: Any) -> str | None:
    """The JSON text of a value whose encoding needs nobody's help, else None."""
    kind = type(result)
    if result is None or kind is bool:
        return _SCALARS[result]
    if kind is int and result.bit_length() <= _BITS:
        return str(result)
    if kind is str:
        return encode_basestring_ascii(result)
    return None
