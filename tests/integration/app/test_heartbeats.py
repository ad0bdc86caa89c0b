"""The heartbeat of idle workers, and the heartbeats that go along with it."""

from __future__ import annotations

import itertools
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery import Celery

from cloche.launch.workers import HEARTBEAT
from cloche.process.heartbeat import heartbeats as read_all
from cloche.testing import BrokerProcess, wait_until
from tests.integration.app.conftest import StartWorker

ClientApp = Callable[..., Celery]

SILENT = "silent"
EXPIRES = 2 * HEARTBEAT  # celery/events/state.py, HEARTBEAT_EXPIRE_WINDOW


class Heartbeats:
    """When the workers of a broker sent theirs, by the name of the worker."""

    def __init__(self, app: Celery) -> None:
        self.times: dict[str, list[float]] = defaultdict(list)
        self._connection = app.connection_for_read()
        self._receiver = app.events.Receiver(
            self._connection, handlers={"worker-heartbeat": self._heard}
        )
        capture = self._receiver.capture
        self._thread = threading.Thread(target=capture, kwargs={"wakeup": False}, daemon=True)
        self._thread.start()

    def _heard(self, event: dict[str, Any]) -> None:
        self.times[event["hostname"].partition("@")[0]].append(event["timestamp"])

    def close(self) -> None:
        self._receiver.should_stop = True
        self._thread.join(5)
        self._connection.close()


def test_idle_workers_live_and_say_so(
    broker: BrokerProcess, start_worker: StartWorker, client_app: ClientApp, tmp_path: Path
) -> None:
    """On a pool that waits at the bells in the worker's loop and on one that does so elsewhere;
    Celery's own command, at an interval of its own and with no heartbeats at all."""
    heartbeats = Heartbeats(client_app(broker.url))
    started = [
        start_worker(broker.url, "-P", "solo", "-Q", "a", "--name", "solo", ready=False),
        start_worker(broker.url, "-P", "asyncio", "-Q", "b", "--name", "loop", ready=False),
        start_worker(broker.url, "-P", "solo", "-n", "own@%h", stock=True, ready=False),
        start_worker(
            broker.url,
            "-P",
            "solo",
            "-n",
            f"{SILENT}@%h",
            "--without-heartbeat",
            stock=True,
            ready=False,
        ),
    ]
    for worker in started:
        worker.wait_ready()
    first = {heartbeat.name: heartbeat for heartbeat in read_all(tmp_path / ".cloche")}
    assert sorted(first) == ["loop", "own", SILENT, "solo"]
    begun, heard = time.monotonic(), {name: len(beats) for name, beats in heartbeats.times.items()}
    turned: set[str] = set()

    def turn() -> bool:
        """Whether all loops have turned for as long; until then none may look dead."""
        for heartbeat in read_all(tmp_path / ".cloche"):
            assert heartbeat.trouble() is None, heartbeat
            if heartbeat.turned > begun + 3.2 * HEARTBEAT:
                turned.add(heartbeat.name)
        return len(turned) == len(first)

    wait_until(turn, "all loops to turn", 40)
    heartbeats.close()
    assert SILENT not in heartbeats.times
    for name in ("solo", "loop"):
        gaps = gaps_of(heartbeats.times[name])
        assert len(heartbeats.times[name]) - heard.get(name, 0) >= 3
        # One timer's, not two; and no reader thinks it dead.
        assert min(gaps) > HEARTBEAT - 1, gaps
        assert max(gaps) < EXPIRES, gaps
    assert max(gaps_of(heartbeats.times["own"])) < HEARTBEAT  # Celery's two seconds


def gaps_of(times: list[float]) -> list[float]:
    return [after - before for before, after in itertools.pairwise(times)]
