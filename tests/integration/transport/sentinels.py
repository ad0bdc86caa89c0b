"""A master, its replica and three sentinels, as real processes."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import redis

from cloche.broker.connection.commands import send
from cloche.testing import BrokerProcess, wait_until

MASTER = "tasks"


class SentinelGroup:
    """``servers[0]`` begins as the master. A sentinel calls it down after ``down`` ms."""

    def __init__(self, program: Path, *, down: int = 1500) -> None:
        self._stack = contextlib.ExitStack()
        self._program = program
        self._down = down
        self.servers: list[BrokerProcess] = []
        self.sentinels: list[BrokerProcess] = []

    @property
    def url(self) -> str:
        """Broker URL: all sentinels."""
        return ";".join(f"cloche+sentinel://127.0.0.1:{one.port}/0" for one in self.sentinels)

    def master_port(self) -> int:
        """The master's port, by a majority of the sentinels; 0 while they disagree."""
        ports = [self._told(one) for one in self.sentinels]
        return max(set(ports), key=ports.count) if len(set(ports)) == 1 else 0

    def master(self) -> BrokerProcess:
        """The server the sentinels call the master."""
        port = self.master_port()
        return next(one for one in self.servers if one.port == port)

    def _told(self, sentinel: BrokerProcess) -> int:
        with sentinel.client() as client:
            found = send(client, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER)
            return int(found[1]) if found else 0

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(BrokerProcess(program=self._program))
            follows: dict[str, str | int] = {
                "replicaof": f"127.0.0.1 {first.port}",
                "repl-diskless-sync-delay": 0,
            }
            first.config["repl-diskless-sync-delay"] = 0
            second = stack.enter_context(BrokerProcess(program=self._program, config=follows))
            self.servers = [first, second]
            wait_until(lambda: _replicas(first) == 1, "the replica follows")
            named = self._named(Path(stack.enter_context(tempfile.TemporaryDirectory())))
            self.sentinels = [
                stack.enter_context(BrokerProcess(program=named, config=self._watching(first)))
                for _ in range(3)
            ]
            wait_until(lambda: all(map(_knows_all, self.sentinels)), "the sentinels met", 30)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and self.sentinels:
            print(f"--- sentinel\n{self.sentinels[0].log[-3000:]}")
        self._stack.close()

    def _named(self, folder: Path) -> Path:
        """The program under a name that makes it a sentinel (server.c, checkForSentinelMode)."""
        link = folder / self._program.name.replace("-server", "-sentinel")
        link.symlink_to(self._program)
        return link

    def _watching(self, master: BrokerProcess) -> dict[str, str | int]:
        return {
            "sentinel monitor": f"{MASTER} 127.0.0.1 {master.port} 2",
            "sentinel down-after-milliseconds": f"{MASTER} {self._down}",
            "sentinel failover-timeout": f"{MASTER} 10000",
        }


def _replicas(master: BrokerProcess) -> int:
    """Replicas that have all of the master's data."""
    with master.client() as client:
        info = client.info("replication")
        found = [info.get(f"slave{n}") for n in range(int(info["connected_slaves"]))]
        return sum(1 for one in found if one and one["state"] == "online")


def _knows_all(sentinel: BrokerProcess) -> bool:
    with sentinel.client() as client:
        try:
            info = client.info("sentinel")["master0"]
        except (KeyError, redis.RedisError):
            return False
        return (info["sentinels"], info["slaves"], info["status"]) == (3, 1, "ok")
