"""Starting and stopping the servers, and what they do without a broker."""

from __future__ import annotations

import socket
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from celery import Celery
from pydantic import SecretStr

from cloche.cluster import Cluster
from cloche.database import Database
from cloche.errors import PortTakenError, SettingsError
from cloche.health.answers import check_database
from cloche.history.live import LiveTasks
from cloche.settings.model import DashboardSettings, DatabaseSettings, Settings
from cloche.testing import BrokerProcess, free_port, wait_until
from cloche.web.dashboard.app import create_dashboard
from cloche.web.server import listen
from tests.integration.web.fixtures import Stack
from tests.integration.web.stack import events_of, serving


def _app(url: str) -> Celery:
    app = Celery("alone", broker=url, backend=url, set_as_current=False)
    app.conf.redis_socket_connect_timeout = 1
    app.conf.result_backend_transport_options = {"retry_policy": {"max_retries": 0}}
    return app


def _settings(directory: Path) -> Settings:
    return Settings(run_dir=directory, dashboard=DashboardSettings(port=free_port()))


def test_a_stop_does_not_wait_for_open_streams(stack: Stack, tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    with serving(create_dashboard(stack.app, settings), settings.dashboard) as running:
        began = threading.Event()
        ended = threading.Event()

        def look() -> None:
            with httpx2.Client(base_url=running.url) as client:
                for _ in events_of(client, "/live"):
                    began.set()
            ended.set()

        viewer = threading.Thread(target=look)
        viewer.start()
        assert began.wait(10)
        took = running.stop()
        assert ended.wait(30), "the stream was not closed"
        viewer.join(5)
    assert took < 4, "it waited for its time-out"  # the grace for transfers is 5 s


def test_a_taken_port_is_told_with_a_free_one(stack: Stack) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = DashboardSettings(port=port)
        with pytest.raises(PortTakenError) as told:
            listen(settings, "dashboard")
    assert told.value.port == port
    assert told.value.exit_code == 4
    with socket.create_server(("127.0.0.1", told.value.free)):
        pass
    assert f"set dashboard.port to {told.value.free}" in str(told.value)


def test_an_address_not_ours_is_told_in_words() -> None:
    with pytest.raises(SettingsError, match=r"Cannot listen on 192\.0\.2\.1"):
        listen(DashboardSettings(host="192.0.2.1", port=free_port()), "dashboard")


def test_the_dashboard_lives_through_a_broker_outage_and_says_so(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    settings = _settings(tmp_path)
    with (
        serving(create_dashboard(_app(broker.url), settings), settings.dashboard) as running,
        httpx2.Client(base_url=running.url) as client,
    ):
        wait_until(lambda: client.get("/readyz").status_code == 200, "ready")
        wait_until(lambda: "No worker answers" in client.get("/").text)
        broker.kill()
        wait_until(lambda: client.get("/readyz").status_code == 503, "not ready")
        wait_until(lambda: "<strong>broker</strong>: " in client.get("/").text)
        assert client.get("/healthz").status_code == 200
        for path in ("/api/tasks/any", "/tasks/any"):
            silent = client.get(path, timeout=30)
            assert silent.status_code == 503
            assert silent.headers["content-type"] == "application/problem+json"
        wait_until(lambda: client.get("/api/snapshot").json()["events"][-1]["until"] is None)
        broker.start()
        wait_until(lambda: client.get("/readyz").status_code == 200, "ready again")
        wait_until(
            lambda: client.get("/api/snapshot").json()["events"][-1]["until"], "the end of the gap"
        )
        gaps = client.get("/api/snapshot").json()["events"]
        assert len(gaps) == 2
        assert gaps[1]["since"] < gaps[1]["until"]
        assert gaps[1]["why"]


def test_a_cluster_never_looked_at_says_so(broker_url: str) -> None:
    snapshot = Cluster(_app(broker_url), Settings()).snapshot()
    assert snapshot.gaps == ("The first look has not ended yet.",)


def test_an_old_snapshot_says_how_old_it_is(broker_url: str) -> None:
    cluster = Cluster(_app(broker_url), Settings(), timeout=0.1, stale=-1.0)
    cluster.look()
    assert "s old" in cluster.snapshot().gaps[-1]
    cluster.stop()


def test_a_failing_check_is_a_verdict_not_an_exception(broker_url: str) -> None:
    def broken() -> str:
        raise OSError("no such place: redis://user:secret@host/0")

    cluster = Cluster(_app(broker_url), Settings(), checks={"disk": broken}, timeout=0.1)
    (check,) = (check for check in cluster.health() if check.name == "disk")
    assert not check.ok
    assert "secret" not in check.detail
    cluster.stop()


def test_a_hanging_check_is_reported_and_not_started_twice(broker_url: str) -> None:
    release = threading.Event()
    starts = 0

    def hang() -> str:
        nonlocal starts
        starts += 1
        release.wait(30)
        return "back"

    cluster = Cluster(_app(broker_url), Settings(), checks={"slow": hang}, timeout=0.1)
    cluster._checks._timeout = 0.2
    for _ in range(2):
        (check,) = (check for check in cluster.health() if check.name == "slow")
        assert not check.ok
        assert "no answer" in check.detail
    assert starts == 1
    release.set()
    wait_until(lambda: {c.name: c.ok for c in cluster.health()}["slow"], "the check ends")
    cluster.stop()


def test_several_threads_may_ask_for_health_at_once(broker_url: str) -> None:
    cluster = Cluster(_app(broker_url), Settings(), timeout=0.1)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: cluster.health(), range(100)))
    assert all(
        [check.name for check in answer] == ["broker", "results", "database"] for answer in answers
    )
    assert all(check.ok for answer in answers for check in answer)
    cluster.stop()


def test_the_live_tasks_stay_bounded(broker_url: str) -> None:
    live = LiveTasks(_app(broker_url), limit=10)
    for number in range(50):
        live._on_event(
            {
                "type": "task-sent",
                "uuid": f"id-{number}",
                "name": "t",
                "hostname": "h",
                "timestamp": float(number),
                "local_received": float(number),
                "clock": number,
            }
        )
    runs = live.recent(100)
    assert [run.id for run in runs] == [f"id-{number}" for number in range(49, 39, -1)]


def test_the_database_is_checked_without_being_touched(tmp_path: Path) -> None:
    settings = Settings(run_dir=tmp_path)
    assert "made at first use" in check_database(settings)
    assert not list(tmp_path.iterdir())
    Database(settings).migrate()
    assert check_database(settings) == str(tmp_path / "cloche.db")
    (tmp_path / "cloche.db").write_bytes(b"no database at all, but text of some length" * 50)
    with pytest.raises(sqlite3.DatabaseError):
        check_database(settings)


def test_an_unreachable_postgresql_is_told(tmp_path: Path) -> None:
    url = SecretStr(f"postgresql://someone:hidden@127.0.0.1:{free_port()}/x")
    settings = Settings(run_dir=tmp_path, database=DatabaseSettings(url=url))
    with pytest.raises(Exception, match=r"(?i)connection .*failed|refused") as told:
        check_database(settings)
    assert "hidden" not in str(told.value)
