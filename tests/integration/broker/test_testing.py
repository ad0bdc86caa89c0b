"""The servers that ``cloche.testing`` runs for tests."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import redis

from cloche.broker.connection.probe import probe
from cloche.errors import NotReadyError
from cloche.testing import BrokerProcess


def test_a_persistent_one_keeps_its_data_and_its_port_over_kill_9(broker: BrokerProcess) -> None:
    with broker.client() as client:
        client.set("key", "kept")
        first = broker.pid
        broker.kill()
        broker.start()
        assert broker.pid != first
        assert client.get("key") == "kept"


def test_it_leaves_neither_process_nor_directory() -> None:
    with BrokerProcess(password="s3cret") as server:
        pid, directory = server.pid, server.directory
        assert probe(server.unix_url).server
    assert not psutil.pid_exists(pid)
    assert not directory.exists()


def test_one_that_cannot_start_says_why() -> None:
    server = BrokerProcess(config={"no-such-setting": "1"})
    directory = server.directory
    with pytest.raises(NotReadyError, match="no-such-setting"), server:
        pass
    assert not directory.exists()


def test_the_session_broker_is_shared(broker_url: str) -> None:
    with redis.Redis.from_url(broker_url) as client:
        assert client.ping()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
def test_it_dies_with_a_test_run_that_is_killed(tmp_path: Path) -> None:
    script = (
        "import time; from cloche.testing import BrokerProcess; server = BrokerProcess(); "
        "server.start(); print(server.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        env={"TMPDIR": str(tmp_path)},
    )
    assert parent.stdout is not None
    server = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait(10)
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while server.is_running() and server.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the server outlived its test run"
        time.sleep(0.01)
