"""Whatever dies, a record is one row, or it is told what became of it."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from cloche.broker.channel import Channel
from cloche.broker.dead_letters import DeadLetters
from cloche.logs.codec import Limits, encode
from cloche.logs.record import LogRecord, stamp
from cloche.logs.write.shipper import WRITE
from cloche.testing import BrokerProcess, PostgresProcess, wait_until
from tests.integration.logs_write.conftest import Make
from tests.integration.logs_write.stack import LogStack, kill

PRODUCERS = 4
POISON_BATCHES = 20
#: Lines of a poisoned batch: (what is wrong with it, the line made of a good one).
POISON: dict[str, Callable[[bytes], bytes]] = {
    "NUL": lambda line: line.replace(b'"message":"', b'"message":"\\u0000'),
    "not JSON": lambda line: line[: len(line) // 2],
    "wrong type": lambda line: line.replace(b'"message":"', b'"message":5,"step":"'),
    "unknown level": lambda line: line.replace(b'"info"', b'"loud"'),
    "oversized": lambda line: line.replace(b'"message":"', b'"message":"' + b"x" * 600_000),
    "wrong time": lambda line: line.replace(b'"time":', b'"time":1'),
}


def poisoned(name: str, number: int) -> list[bytes]:
    """A good line, then one of each kind of poison."""
    record = LogRecord(*stamp(), "info", "test", None, str(number), run_id=name)
    good = encode(record, Limits(10_000, 10_000)).rstrip(b"\n")
    bad = []
    for change in POISON.values():
        other = LogRecord(*stamp(), "info", "test", None, str(number), run_id=name)
        bad.append(change(encode(other, Limits(10_000, 10_000)).rstrip(b"\n")))
    return [*bad[:3], good, *bad[3:]]


@pytest.fixture
def own_postgres() -> Iterator[PostgresProcess]:
    """To be killed."""
    with PostgresProcess(durable=True) as own:
        yield own


SHORT = (20_000, 3.0)
LONG = (1_000_000, 30.0)


@pytest.mark.parametrize(
    ("records", "away"),
    [pytest.param(*SHORT, id="short"), pytest.param(*LONG, id="long", marks=pytest.mark.long)],
)
@pytest.mark.timeout(1500)
def test_every_record_is_one_row_though_everything_dies(
    make_stack: Make,
    broker: BrokerProcess,
    own_postgres: PostgresProcess,
    records: int,
    away: float,
) -> None:
    stack = make_stack(broker.url, own_postgres.url)
    workers = [stack.worker(), stack.worker("asyncio", 100)]
    each, pause = records // PRODUCERS, 0.02 if records < 100_000 else 0.01
    names = [f"run-{number}" for number in range(PRODUCERS)]
    producers = [stack.producer(name, each, pause) for name in names]
    stop = threading.Event()
    poisoner = threading.Thread(target=send_poison, args=[stack, stop])
    poisoner.start()

    reached(stack, records // 20)
    workers = [replaced(stack, workers[0], "prefork"), workers[1]]
    own_postgres.kill()
    own_postgres.start()
    reached(stack, records // 8)
    broker.kill()
    time.sleep(away)  # that it is away is the fault
    broker.start()
    workers = [workers[0], replaced(stack, workers[1], "asyncio")]
    own_postgres.kill()
    time.sleep(1)
    own_postgres.start()

    for producer in producers:
        assert producer.wait(1200) == 0
    poisoner.join()
    # What was on disk when its producer ended is sent by whoever comes next.
    subprocess.run(
        ["cloche", "logs", "spool", "replay"], env=stack.environ, check=True, cwd=stack.directory
    )
    expected = each * PRODUCERS + POISON_BATCHES
    wait_until(lambda: stack.rows() >= expected, f"{expected} rows", 300)
    wait_until(lambda: nothing_left(stack), "no message to be left", 60)
    assert stack.rows() == expected
    for name in names:
        stats = stack.stats(name)
        assert (stats["accepted"], stats["dropped"]) == (each, {})
        # Ids are in the order in which they were logged.
        assert stack.of_run(name) == [str(number) for number in range(each)]
    assert stack.of_run("poison") == [str(number) for number in range(POISON_BATCHES)]
    letters = stack.letters()
    assert sum(letters.values()) == POISON_BATCHES * len(POISON), letters
    assert broker_letters(stack) == 0


def send_poison(stack: LogStack, stop: threading.Event) -> None:
    """Batches with poison, sent as any program might, until each has arrived."""
    for number in range(POISON_BATCHES):
        text = b"\n".join(poisoned("poison", number)).decode()
        while not sent(stack, text):
            stop.wait(0.2)
        stop.wait(0.2)


def sent(stack: LogStack, text: str) -> bool:
    try:
        stack.app.send_task(WRITE, [text], queue="logs", ignore_result=True)
    except Exception:
        return False
    return True


def reached(stack: LogStack, count: int) -> None:
    wait_until(lambda: stack.rows() >= count, f"{count} rows", 300)


def replaced(
    stack: LogStack, worker: subprocess.Popen[bytes], pool: str
) -> subprocess.Popen[bytes]:
    kill(worker)
    return stack.worker(pool)


def nothing_left(stack: LogStack) -> bool:
    """Neither in the queue, nor with a worker, nor later."""
    with stack.app.connection_for_write() as connection:
        channel = connection.default_channel
        assert isinstance(channel, Channel)
        keys = channel.keys
        held = sum(
            1
            for key in channel.own.scan_iter(match="*inflight*")
            for field in channel.own.hkeys(key)
            if b"/" in field
        )
        later = channel.own.zcard(keys.delayed("logs"))
        return not held and not later and channel._size("logs") == 0


def broker_letters(stack: LogStack) -> int:
    with stack.app.connection_for_write() as connection:
        channel = connection.default_channel
        return len(DeadLetters(channel.own, channel.keys))
