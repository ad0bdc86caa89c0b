"""Every pool, both transports, both databases: what is logged is stored."""

from __future__ import annotations

import time
from collections.abc import Iterator

import psutil
import pytest

from cloche import ExecutionLogger
from cloche.broker.channel import Channel
from cloche.logs.write.counts import LogDirectory
from cloche.testing import BrokerProcess, PostgresProcess, wait_until
from tests.integration.logs_write.conftest import Make
from tests.integration.logs_write.stack import LogStack


@pytest.mark.parametrize(
    ("pool", "transport", "kind"),
    [
        ("prefork", "cloche", "postgresql"),
        ("prefork", "stock", "sqlite"),
        ("asyncio", "cloche", "sqlite"),
        ("asyncio", "stock", "postgresql"),
        ("threads", "cloche", "postgresql"),
    ],
)
def test_what_is_logged_is_stored_on_every_pool(
    pool: str,
    transport: str,
    kind: str,
    make_stack: Make,
    broker: BrokerProcess,
    request: pytest.FixtureRequest,
) -> None:
    url = request.getfixturevalue("database_url") if kind == "postgresql" else None
    stack = make_stack(broker.url, url, transport=transport)
    stack.worker(pool)
    log = ExecutionLogger(stack.app, interval=0.1, max_batch=100)
    for number in range(2000):
        log.info("agent", "plan", str(number), run_id="r", details={"n": number})
        if number == 1000:
            log.flush()
    assert log.flush()
    log.close()
    wait_until(lambda: stack.rows() == 2000, "all rows", 30)
    assert stack.of_run("r") == [str(number) for number in range(2000)]


@pytest.fixture
def own_postgres() -> Iterator[PostgresProcess]:
    with PostgresProcess() as own:
        yield own


@pytest.mark.parametrize(
    ("pool", "transport"), [("prefork", "cloche"), ("asyncio", "cloche"), ("prefork", "stock")]
)
def test_batches_outlive_a_database_that_is_away(
    pool: str,
    transport: str,
    make_stack: Make,
    broker: BrokerProcess,
    own_postgres: PostgresProcess,
) -> None:
    stack = make_stack(broker.url, own_postgres.url, transport=transport)
    worker = stack.worker(pool)
    log = ExecutionLogger(stack.app, interval=0.1)
    log.info("agent", None, "before", run_id="r")
    wait_until(lambda: stack.rows() == 1, "the first row", 30)
    own_postgres.kill()
    for number in range(300):
        log.info("agent", None, str(number), run_id="r")
        if number % 50 == 49:
            assert log.flush()
    # Longer than three deliveries would take, if each failure cost one.
    wait_until(lambda: said(stack, "refuses|does not answer") >= 4, "the worker to find it out", 60)
    own_postgres.start()
    wait_until(lambda: stack.rows() == 301, "all rows", 60)
    assert stack.of_run("r") == ["before", *map(str, range(300))]
    assert worker.poll() is None
    log.close()


def said(stack: LogStack, words: str) -> int:
    text = (stack.directory / "worker-1.log").read_text()
    return sum(text.count(word) for word in words.split("|"))


def test_the_fallback_is_switched_at_run_time_without_loss_or_double(
    make_stack: Make, broker: BrokerProcess, database_url: str
) -> None:
    stack = make_stack(broker.url, database_url)
    place = LogDirectory(stack.settings.run_dir)
    log = ExecutionLogger(stack.app, interval=0.1)
    count = 0

    def some(number: int) -> None:
        nonlocal count
        for _ in range(number):
            log.info("agent", None, str(count), run_id="r")
            count += 1
        assert log.flush()

    some(100)
    broker.kill()
    some(100)
    assert log.stats().spooled == 100
    place.set_mode("direct")
    some(100)  # what waited on disk goes first, so that the order stays
    wait_until(lambda: stack.rows() == 200, "the spool to be written too", 20)
    assert log.stats().direct == 200
    place.set_mode("spool")
    some(100)
    assert stack.rows() == 200
    broker.start()
    stack.worker()
    some(100)
    wait_until(lambda: stack.rows() == 500, "all rows", 30)
    assert stack.of_run("r") == [str(number) for number in range(500)]
    assert log.stats().dropped == {}
    log.close()


def test_memory_and_disk_are_bounded_while_database_and_broker_are_full(
    make_stack: Make, broker: BrokerProcess, own_postgres: PostgresProcess
) -> None:
    """Row 22: the pipeline at its cap. What does not fit is counted, exactly."""
    stack = make_stack(broker.url, own_postgres.url)
    stack.worker()
    log = ExecutionLogger(
        stack.app, interval=0.05, max_queued=5, max_spool=200_000, buffer=1000, batch=10
    )
    own_postgres.kill()
    most = 0
    for number in range(6000):
        log.info("agent", None, f"{number:0100}", run_id="r")
        most = max(most, log.stats().buffered)
        if number % 200 == 199:
            time.sleep(0.05)
    assert log.flush(30)
    stats = log.stats()
    assert most <= 1000
    assert stats.accepted == 6000
    assert stats.dropped["spool full"] > 0
    own_postgres.start()
    kept = 6000 - sum(stats.dropped.values())
    wait_until(lambda: stack.rows() >= kept, "all that was kept", 90)
    wait_until(lambda: idle(stack), "no more", 90)
    assert stack.rows() == kept == 6000 - sum(log.stats().dropped.values())
    assert {
        r: one.count for r, one in LogDirectory(stack.settings.run_dir).dropped().items()
    } == dict(log.stats().dropped)
    log.close()


def test_memory_is_bounded_while_the_database_is_away(
    make_stack: Make, broker: BrokerProcess, own_postgres: PostgresProcess
) -> None:
    """Of the producer, and of a worker that gets messages of half a megabyte again and again."""
    stack = make_stack(
        broker.url,
        own_postgres.url,
        CLOCHE_LOGS__BUFFER="2000",
        CLOCHE_LOGS__MAX_QUEUED="20",
        CLOCHE_LOGS__MAX_SPOOL="2000000",
    )
    worker = psutil.Process(stack.worker().pid)
    own_postgres.kill()
    producer = stack.producer("long", 200_000, 0.002, 1000)
    most = 0
    while producer.poll() is None:
        most = max(most, resident(worker))
        time.sleep(0.2)
    assert producer.returncode == 0
    stats = stack.stats("long")
    assert stats["accepted"] == 200_000
    assert stats["dropped"]["spool full"] > 100_000
    assert stats["grown"] < 25 * 2**20
    # Main process and two children. 450 MiB were seen: what the allocator
    # keeps of a few messages of that size and their copies.
    assert most < 700 * 2**20, most // 2**20


def resident(process: psutil.Process) -> int:
    """Bytes of it and its children, what they share counted once."""
    family = (process, *process.children(recursive=True))
    return sum(one.memory_full_info().pss for one in family)


def idle(stack: LogStack) -> bool:
    with stack.app.connection_for_write() as connection:
        channel = connection.default_channel
        assert isinstance(channel, Channel)
        later = channel.own.zcard(channel.keys.delayed("logs"))
        return channel._size("logs") == 0 and not later


@pytest.mark.parametrize("pool", ["prefork", "asyncio"])
def test_what_a_task_logs_leaves_with_its_worker(
    pool: str, make_stack: Make, broker: BrokerProcess
) -> None:
    stack = make_stack(broker.url)
    worker = stack.worker(pool)
    for number in range(10):
        stack.app.send_task("project.say", [str(number)], queue="logs")
    wait_until(lambda: idle(stack), "the tasks to have run", 90)
    worker.terminate()
    assert worker.wait(60) == 0
    assert stack.rows() == 0
    stack.worker(pool)
    wait_until(lambda: stack.rows() == 10, "what they logged", 90)
    assert sorted(stack.of_run("tasks")) == [str(number) for number in range(10)]


def test_a_worker_that_starts_sends_what_an_ended_process_left(
    make_stack: Make, broker: BrokerProcess
) -> None:
    """Where nobody logs any more, nobody else would."""
    stack = make_stack(broker.url)
    broker.kill()
    producer = stack.producer("gone", 40)
    assert producer.wait(60) == 0
    assert stack.stats("gone")["spooled"] == 40
    broker.start()
    stack.worker()
    wait_until(lambda: stack.rows() == 40, "what it left", 90)
