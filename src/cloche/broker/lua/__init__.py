"""The Lua scripts beside this file, each one atomic step of the transport.

Sent by their SHA-1; a server that does not know one (restarted, failed over, flushed) gets
the text. Messages are moved by Lua and edited by Python: cjson would turn ``[]`` into ``{}``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import resources
from typing import Any

import redis

from cloche.broker.connection.commands import send
from cloche.broker.connection.connection import Sender

Argument = str | bytes | int


class Script:
    """One script: ``run`` it on a client, or ``command`` it on a connection of one's own."""

    def __init__(self, name: str) -> None:
        self.text = resources.files(__name__).joinpath(f"{name}.lua").read_text("utf-8")
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    def command(
        self, keys: Sequence[str], arguments: Sequence[Argument], *, text: bool = False
    ) -> list[Argument]:
        """The words of EVALSHA, or of EVAL with ``text``."""
        head: list[Argument] = ["EVAL", self.text] if text else ["EVALSHA", self.sha]
        return [*head, len(keys), *keys, *arguments]

    def call(self, line: Sender, keys: Sequence[str], arguments: Sequence[Argument] = ()) -> Any:
        """The same as :meth:`run` on a connection of one's own, at half the cost."""
        (reply,) = line.send_all([self.command(keys, arguments)])
        if isinstance(reply, redis.exceptions.NoScriptError):
            (reply,) = line.send_all([self.command(keys, arguments, text=True)])
        if isinstance(reply, Exception):
            raise reply
        return reply

    def run(
        self, client: redis.Redis, keys: Sequence[str], arguments: Sequence[Argument] = ()
    ) -> Any:
        """Run it and return the reply. Raises what redis-py raises."""
        try:
            return send(client, *self.command(keys, arguments))
        except redis.exceptions.NoScriptError:
            return send(client, *self.command(keys, arguments, text=True))


PUBLISH = Script("publish")
JOIN = Script("join")
RENEW = Script("renew")
LEAVE = Script("leave")
FETCH = Script("fetch")
REQUEUE = Script("requeue")
BURY = Script("bury")
PARK = Script("park")
TICK = Script("tick")
REVIVE = Script("revive")
STORE = Script("store")
COUNT_ONCE = Script("count_once")
PUBLISH_MANY = Script("publish_many")
PARK_MANY = Script("park_many")
MOVE = Script("move")
MOVE_DELAYED = Script("move_delayed")
PURGE = Script("purge")
RESTORE = Script("restore")
LEADER_LOCK = Script("leader_lock")
LEADER_LOCK_DROP = Script("leader_lock_drop")
LEADER_LOCK_SEND = Script("leader_lock_send")
