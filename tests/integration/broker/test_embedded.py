"""The embedded broker, run for real: what survives, what is reclaimed, what is left alone."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import redis
from kombu.connection import Connection

from cloche.broker.connection.address import parse_address
from cloche.broker.connection.probe import client_of, probe
from cloche.broker.embedded.broker import EmbeddedBroker
from cloche.errors import BrokerError, PortTakenError
from cloche.testing import BrokerProcess, free_port

Run = Callable[[EmbeddedBroker], subprocess.Popen[str]]


@pytest.fixture
def run() -> Iterator[Run]:
    """Runs an embedded broker's command, as the supervisor does, until it is ready."""
    started: list[subprocess.Popen[str]] = []

    def start(broker: EmbeddedBroker) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            broker.command(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        started.append(process)
        _until(lambda: broker.ready() or process.poll() is not None)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait(10)
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture
def broker(tmp_path: Path) -> EmbeddedBroker:
    return EmbeddedBroker(tmp_path / "broker")


def client(broker: EmbeddedBroker) -> redis.Redis:
    return client_of(parse_address(broker.url))


def test_it_answers_on_port_and_socket_with_its_password_only(
    broker: EmbeddedBroker, run: Run
) -> None:
    run(broker)
    assert probe(broker.url).persistence == "AOF everysec"
    assert probe(broker.unix_url).policy == "noeviction"
    with pytest.raises(BrokerError, match="asks for a password"):
        probe(f"redis://127.0.0.1:{broker.port}/0")


def test_it_listens_on_loopback_only(broker: EmbeddedBroker, run: Run) -> None:
    process = psutil.Process(run(broker).pid)
    links = [link for link in process.net_connections() if link.status == psutil.CONN_LISTEN]
    assert [(link.laddr.ip, link.laddr.port) for link in links] == [("127.0.0.1", broker.port)]


def test_its_files_are_private_and_its_password_is_not_in_the_process_list(
    broker: EmbeddedBroker, run: Run
) -> None:
    process = psutil.Process(run(broker).pid)
    password = parse_address(broker.url).password
    assert password
    assert len(password) >= 32
    assert password not in " ".join(process.cmdline())
    assert stat.S_IMODE(broker.directory.stat().st_mode) == 0o700
    for name in ("server.conf", "password", "broker.json", "server.sock"):
        assert stat.S_IMODE((broker.directory / name).stat().st_mode) & 0o077 == 0, name


def _written(link: redis.Redis) -> bool:
    """Whether all that was acknowledged is in the file.

    With everysec the server puts a write off, for two seconds at most, while an earlier sync
    still runs (aof.c, flushAppendOnlyFile), but replies at once.
    """
    return int(link.info("persistence")["aof_buffer_length"]) == 0


@pytest.mark.parametrize("fsync", ["always", "everysec"])
def test_what_was_acknowledged_is_there_after_kill_9(tmp_path: Path, run: Run, fsync: str) -> None:
    broker = EmbeddedBroker(tmp_path / "broker", fsync=fsync)
    process = run(broker)
    with client(broker) as link:
        assert link.config_get("appendfsync") == {"appendfsync": fsync}
        for number in range(500):
            link.rpush("queue", number)
        if fsync == "everysec":
            _until(lambda: _written(link))
    process.kill()
    process.wait(10)
    again = EmbeddedBroker(tmp_path / "broker", fsync=fsync)
    run(again)
    assert again.url == broker.url
    with client(again) as link:
        assert link.llen("queue") == 500


def test_a_torn_last_write_does_not_keep_it_from_starting(broker: EmbeddedBroker, run: Run) -> None:
    process = run(broker)
    with client(broker) as link:
        link.rpush("queue", "one", "two")
    process.kill()
    process.wait(10)
    log = next(broker.directory.glob("appendonlydir/*.incr.aof"))
    with log.open("ab") as file:
        file.write(b"*3\r\n$5\r\nRPUSH\r\n$5\r\nque")
    run(broker)
    with client(broker) as link:
        assert link.lrange("queue", 0, -1) == ["one", "two"]


def test_a_damaged_log_is_told_with_the_command_that_repairs_it(
    broker: EmbeddedBroker, run: Run
) -> None:
    process = run(broker)
    with client(broker) as link:
        link.rpush("queue", "one")
    process.kill()
    process.wait(10)
    log = next(broker.directory.glob("appendonlydir/*.incr.aof"))
    log.write_bytes(log.read_bytes() + b"garbage\r\n" * 20)
    failed = run(broker)
    said = failed.stdout.read().splitlines() if failed.stdout else []
    error = broker.startup_diagnosis(said)
    assert isinstance(error, BrokerError)
    assert "is damaged" in error.what
    assert "Bad file format" in error.why
    copy, _, repair = error.fix.removeprefix("first copy it: ").partition("; then cut the ")
    for command in (copy, repair.partition(": ")[2]):
        subprocess.run(["bash", "-c", command], input=b"y\n", check=True, capture_output=True)
    run(broker)
    with client(broker) as link:
        assert link.lrange("queue", 0, -1) == ["one"]


def test_a_server_of_an_earlier_run_is_stopped_in_good_order(
    broker: EmbeddedBroker, run: Run
) -> None:
    earlier = run(broker)
    with client(broker) as link:
        link.rpush("queue", "one")
    successor = EmbeddedBroker(broker.directory)
    found = successor.reclaim()
    assert found is not None
    assert (found.pid, found.how) == (earlier.pid, "asked")
    assert str(earlier.pid) in found.describe()
    assert earlier.wait(10) == 0
    run(successor)
    assert successor.url == broker.url
    with client(successor) as link:
        assert link.lrange("queue", 0, -1) == ["one"]


def test_a_frozen_server_of_an_earlier_run_is_stopped_too(broker: EmbeddedBroker, run: Run) -> None:
    earlier = run(broker)
    earlier.send_signal(signal.SIGSTOP)
    found = EmbeddedBroker(broker.directory).reclaim()
    assert found is not None
    assert found.pid == earlier.pid
    assert earlier.wait(10) == 0


def test_there_is_nothing_to_reclaim_after_a_proper_stop_or_before_the_first_start(
    broker: EmbeddedBroker, run: Run
) -> None:
    assert broker.reclaim() is None
    process = run(broker)
    process.terminate()
    assert process.wait(10) == 0
    assert broker.reclaim() is None


def test_a_pid_that_now_belongs_to_somebody_else_is_left_alone(broker: EmbeddedBroker) -> None:
    with BrokerProcess() as stranger:
        broker.command()
        (broker.directory / "server.pid").write_text(f"{stranger.pid}\n")
        assert broker.reclaim() is None
        assert probe(stranger.url).role == "master"


def test_a_stranger_on_the_last_port_is_left_alone_and_avoided(
    broker: EmbeddedBroker, run: Run
) -> None:
    broker.command()
    with BrokerProcess(port=broker.port) as stranger:
        successor = EmbeddedBroker(broker.directory)
        assert successor.reclaim() is None
        run(successor)
        assert successor.port != stranger.port
        assert probe(successor.url).persistent
        with stranger.client() as link:
            assert link.dbsize() == 0


def test_a_taken_port_is_named_with_its_owner_and_a_free_one(tmp_path: Path) -> None:
    with BrokerProcess() as stranger:
        broker = EmbeddedBroker(tmp_path / "broker", port=stranger.port)
        with pytest.raises(PortTakenError) as caught:
            broker.command()
        error = caught.value
        assert error.port == stranger.port
        assert error.free != stranger.port
        assert str(error.free) in error.fix
        assert f"(pid {stranger.pid})" in error.why


def test_a_port_lost_between_choice_and_start_is_told_from_the_servers_words(
    broker: EmbeddedBroker, run: Run
) -> None:
    broker.command()
    with BrokerProcess(port=broker.port):
        failed = run(broker)
        said = failed.stdout.read().splitlines() if failed.stdout else []
        assert isinstance(broker.startup_diagnosis(said), PortTakenError)


def test_the_port_asked_for_is_used(tmp_path: Path, run: Run) -> None:
    port = free_port()
    broker = EmbeddedBroker(tmp_path / "broker", port=port)
    run(broker)
    assert f":{port}/" in broker.url
    assert broker.ready()


@pytest.fixture
def short_tmp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary directory with a path short enough for sockets."""
    with tempfile.TemporaryDirectory() as directory:
        monkeypatch.setattr(tempfile, "tempdir", directory)
        yield Path(directory)


def test_a_long_and_odd_directory_name_is_no_obstacle(
    tmp_path: Path, run: Run, short_tmp: Path
) -> None:
    broker = EmbeddedBroker(tmp_path / ("a \"quoted\\ dir'" + "x" * 120) / "broker")
    run(broker)
    assert probe(broker.unix_url).persistent
    assert probe(broker.url).persistent
    found = EmbeddedBroker(broker.directory).reclaim()
    assert found is not None
    assert not broker.ready()
    assert len(list(short_tmp.iterdir())) == 1


def test_an_odd_path_of_the_socket_is_quoted_as_kombu_reads_it(short_tmp: Path, run: Run) -> None:
    broker = EmbeddedBroker(short_tmp / "a b?c#d%20e")
    run(broker)
    assert probe(broker.unix_url).persistent
    with Connection(broker.unix_url) as connection:
        assert connection.default_channel.client.ping()


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BrokerError) as caught:
        EmbeddedBroker(tmp_path / "file" / "broker").command()
    assert "Not a directory" in caught.value.why
    assert "run_dir" in caught.value.fix


@contextmanager
def _unprivileged() -> Iterator[None]:
    """Root may write everywhere, so it becomes nobody for a while."""
    if os.getuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_directory_that_is_not_writable_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    broker = EmbeddedBroker(tmp_path / "broker")
    with _unprivileged():
        assert broker.reclaim() is None
        with pytest.raises(BrokerError, match="cannot keep its data") as caught:
            broker.command()
    assert "Permission denied" in caught.value.why


def test_a_socket_directory_of_somebody_else_is_refused(
    broker: EmbeddedBroker, short_tmp: Path
) -> None:
    deep = EmbeddedBroker(broker.directory / ("x" * 120))
    deep.command()
    (private,) = short_tmp.glob("cloche-*")
    private.chmod(0o755)
    with pytest.raises(BrokerError, match="is not private to this user"):
        EmbeddedBroker(deep.directory).command()


def test_while_it_loads_a_big_log_it_says_so_and_can_be_reclaimed(
    broker: EmbeddedBroker, run: Run
) -> None:
    process = run(broker)
    with client(broker) as link, link.pipeline(transaction=False) as pipe:
        for number in range(20_000):
            pipe.set(f"key{number}", "x" * 100)
        pipe.execute()
        _until(lambda: _written(link))
    process.kill()
    process.wait(10)
    command = broker.command()
    slow = ["--key-load-delay", "20", "--loading-process-events-interval-bytes", "1024"]
    loading = subprocess.Popen([*command, *slow], stdout=subprocess.DEVNULL)
    try:
        _until(lambda: "% read" in broker.readiness().detail)
        health = broker.readiness()
        assert not health.ok
        assert health.detail.startswith("still loading: ")
        found = EmbeddedBroker(broker.directory).reclaim()
        assert found is not None
        assert loading.wait(10) == 0
    finally:
        loading.kill()
        loading.wait(10)
    run(broker)
    with client(broker) as link:
        assert link.dbsize() == 20_000


def test_it_describes_itself_for_the_banner(broker: EmbeddedBroker) -> None:
    said = broker.describe()
    assert said.startswith(f"embedded {broker.server.version}, data in {broker.directory}")
    assert said.endswith("(AOF, synced every second)")
    assert broker.survives


def _until(condition: Callable[[], bool], timeout: float = 15) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it never came to pass"
        time.sleep(0.005)
