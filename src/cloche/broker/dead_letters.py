"""Messages that will not be delivered again, with the reason: list, show, retry, purge."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import redis

from cloche.broker import lua, message
from cloche.broker.connection.commands import send
from cloche.broker.keys import Keys
from cloche.broker.lease.lease import key_of

logger = logging.getLogger("cloche.transport")

#: Ids read in one round trip.
PAGE = 100


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One of them. ``at`` is when it died, Unix seconds; ``raw`` the message as it was.

    ``reason`` is one of "rejected", "unknown-task", "invalid", "undecodable", "oversized",
    "max-deliveries"; ``deaths`` tells of the consumers that died holding it.
    """

    id: str
    queue: str
    key: str
    reason: str
    detail: str
    at: float
    task: str | None
    task_id: str | None
    deaths: tuple[dict[str, Any], ...]
    raw: bytes


class DeadLetters:
    """Those of one server. ``client`` must return bytes, as redis-py does by default."""

    def __init__(self, client: redis.Redis, keys: Keys | None = None) -> None:
        self._client = client
        self._keys = keys or Keys()

    def __len__(self) -> int:
        return int(send(self._client, "ZCARD", self._keys.dead_index))

    def bury(
        self, inflight: str, field: str, raw: bytes, reason: str, detail: str = ""
    ) -> str | None:
        """Move a message from an in-flight hash here; its id, None if it was not there any more.

        Raises what redis-py raises.
        """
        letter = self._letter(inflight, field, raw, reason, detail)
        keys = [inflight, self._keys.dead, self._keys.dead_index]
        if not lua.BURY.run(self._client, keys, [field, letter.id, _dump(letter)]):
            return None
        logger.error(
            "dead letter %s from queue %s: %s%s; task %s[%s]",
            letter.id,
            letter.queue,
            reason,
            f" ({detail[:200]})" if detail else "",
            letter.task,
            letter.task_id,
        )
        return letter.id

    def _letter(self, inflight: str, field: str, raw: bytes, reason: str, why: str) -> DeadLetter:
        key = key_of(field)
        try:
            envelope = message.decode(raw)
        except ValueError:
            envelope = {"headers": {}}
        headers = envelope["headers"]
        consumer = inflight.removeprefix(self._keys.inflight(""))
        return DeadLetter(
            id=letter_id(f"{consumer}/{field}"),
            queue=self._keys.queue_of(key),
            key=key,
            reason=reason,
            detail=why,
            at=time.time(),
            task=headers.get("task"),
            task_id=headers.get("id"),
            deaths=tuple(message.deaths(envelope)),
            raw=raw,
        )

    def explain(self, tag: str, reason: str, detail: str) -> None:
        """Give the dead letter of a delivery a better reason, told only after its rejection."""
        identity = letter_id(tag)
        record = send(self._client, "HGET", self._keys.dead, identity)
        if record is not None:
            fields = {**json.loads(record), "reason": reason, "detail": detail}
            send(self._client, "HSET", self._keys.dead, identity, json.dumps(fields))

    def get(self, identity: str) -> DeadLetter | None:
        """The one with this id."""
        record = send(self._client, "HGET", self._keys.dead, identity)
        return None if record is None else _load(record)

    def latest(self, *, queue: str | None = None, limit: int = 100) -> list[DeadLetter]:
        """The latest ``limit``, newest first; only those from ``queue`` if given."""
        found: list[DeadLetter] = []
        for letter in self._newest_first():
            if queue is None or letter.queue == queue:
                found.append(letter)
                if len(found) >= limit:
                    break
        return found

    def _newest_first(self) -> Iterator[DeadLetter]:
        start = 0
        while ids := send(
            self._client, "ZREVRANGE", self._keys.dead_index, start, start + PAGE - 1
        ):
            records = send(self._client, "HMGET", self._keys.dead, *ids)
            yield from (_load(record) for record in records if record is not None)
            start += PAGE

    def retry(self, ids: Iterable[str] | None = None) -> int:
        """Put them (all without ``ids``) back into their queues, deaths forgiven; how many."""
        done = 0
        for identity in self._all_ids() if ids is None else list(ids):
            letter = self.get(identity)
            if letter is not None:
                keys = [self._keys.dead, self._keys.dead_index, letter.key]
                done += lua.REVIVE.run(self._client, keys, [identity, _forgiven(letter.raw)])
        return done

    def purge(self, ids: Iterable[str] | None = None) -> int:
        """Delete them (all without ``ids``); how many there were."""
        done = 0
        for identity in self._all_ids() if ids is None else list(ids):
            done += int(send(self._client, "HDEL", self._keys.dead, identity))
            send(self._client, "ZREM", self._keys.dead_index, identity)
        return done

    def _all_ids(self) -> list[str]:
        ids = send(self._client, "ZRANGE", self._keys.dead_index, 0, -1)
        return [identity.decode() for identity in ids]


def letter_id(tag: str) -> str:
    """The id of the dead letter a delivery became."""
    return hashlib.sha256(tag.encode()).hexdigest()[:12]


def _forgiven(raw: bytes) -> bytes | str:
    try:
        envelope = message.decode(raw)
    except ValueError:
        return raw
    message.forgive(envelope)
    return message.encode(envelope)


def _dump(letter: DeadLetter) -> str:
    fields = {name: getattr(letter, name) for name in DeadLetter.__slots__ if name != "raw"}
    try:
        fields["message"] = letter.raw.decode()
    except UnicodeDecodeError:
        fields["message_base64"] = base64.b64encode(letter.raw).decode()
    return json.dumps(fields, default=str)  # a task's name may have lone surrogates


def _load(record: bytes) -> DeadLetter:
    fields = json.loads(record)
    text = fields.pop("message", None)
    encoded = fields.pop("message_base64", None)
    raw = text.encode() if text is not None else base64.b64decode(encoded or "")
    return DeadLetter(**{**fields, "deaths": tuple(fields["deaths"])}, raw=raw)
