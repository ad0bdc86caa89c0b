"""The pulse of idle workers, and the heartbeats that go along with it."""

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
from cloche.process.pulse import pulses
from cloche.testing import BrokerProcess
from tests.acceptance.stack import wait_for
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
    first = {pulse.name: pulse for pulse in pulses(tmp_path / ".cloche")}
    assert sorted(first) == ["loop", "own", SILENT, "solo"]
    begun, heard = time.monotonic(), {name: len(beats) for name, beats in heartbeats.times.items()}
    turned: set[str] = set()

    def turn() -> bool:
        """Whether all loops have turned for as long; until then none may look dead."""
        for pulse in pulses(tmp_path / ".cloche"):
            assert pulse.trouble() is None, pulse
            if pulse.turned > begun + 3.2 * HEARTBEAT:
                turned.add(pulse.name)
        return len(turned) == len(first)

    wait_for("all loops to turn", turn, 40)
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
