"""``log()`` and what becomes of a record: sent in time, kept, dropped and counted."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from cloche import ExecutionLogger
from cloche.errors import SettingsError
from cloche.logs.write.counts import LogDirectory
from cloche.logs.write.flusher import AT_ONCE
from cloche.logs.write.spool import kept, lines_of, orphans
from cloche.testing import BrokerProcess, wait_until
from tests.integration.logs_write.conftest import Make
from tests.integration.logs_write.stack import LogStack


@pytest.fixture
def stack(make_stack: Make, broker: BrokerProcess) -> LogStack:
    """No worker: what is sent stays in the queue ``logs``."""
    return make_stack(broker.url)


@pytest.fixture
def made(stack: LogStack) -> Iterator[Any]:
    """Makes loggers of the stack's application."""
    loggers: list[ExecutionLogger] = []

    def make(**options: Any) -> ExecutionLogger:
        loggers.append(ExecutionLogger(stack.app, **options))
        return loggers[-1]

    yield make
    for logger in loggers:
        logger.close(1)


def queued(broker: BrokerProcess) -> list[str]:
    """The messages of the records in the queue, in order."""
    found = []
    with broker.client() as client:
        for raw in reversed(client.lrange("logs", 0, -1)):
            found += list(messages(raw))
    return found


def messages(raw: str) -> Iterator[str]:
    [[lines], _, _] = json.loads(_body(json.loads(raw)))
    for line in lines.splitlines():
        yield orjson.loads(line)["message"]


def _body(envelope: dict[str, Any]) -> bytes:

    return base64.b64decode(envelope["body"])


def in_spool(run_dir: Path) -> list[str]:
    """The messages of what ended processes left."""
    found = []
    for drawer in orphans(LogDirectory(run_dir).spool):
        for segment in drawer.segments():
            found += [orjson.loads(line)["message"] for line in lines_of(segment)[0]]
        drawer.release()
    return found


def test_a_record_that_nothing_follows_is_sent_by_the_timer(
    made: Any, broker: BrokerProcess
) -> None:
    log = made(interval=0.2)
    record = log.info("agent", "plan", "alone", run_id="r")
    assert record.id.version == 7
    assert log.stats().buffered == 1
    wait_until(lambda: queued(broker) == ["alone"], "the timer", 10)
    log.info("agent", "plan", "again")
    wait_until(lambda: queued(broker) == ["alone", "again"], "the timer again", 10)


def test_a_full_batch_does_not_wait_for_the_timer(made: Any, broker: BrokerProcess) -> None:
    log = made(interval=3600, batch=10)
    for number in range(11):
        log.info("agent", None, str(number))
    wait_until(lambda: len(queued(broker)) == 11, "the batch", 10)


def test_flush_sends_what_there_is(made: Any, broker: BrokerProcess) -> None:
    log = made(interval=3600)
    log.error("agent", "plan", "one", details={"why": "x"}, duration_ms=2)
    assert log.flush(10)
    assert queued(broker) == ["one"]
    assert log.stats().sent == log.stats().accepted == 1


def test_a_level_that_is_none_is_refused(made: Any) -> None:
    with pytest.raises(ValueError, match="'loud' is no level; there are: debug, info"):
        made().log("loud", "agent", None, "x")


def test_an_option_that_does_not_exist_is_refused(stack: LogStack) -> None:
    with pytest.raises(SettingsError, match="durabel"):
        ExecutionLogger(stack.app, durabel=True)


def test_a_loop_is_not_blocked_by_logging_while_the_broker_hangs(
    made: Any, broker: BrokerProcess
) -> None:
    log = made(buffer=100, batch=10, overflow="block")

    async def main() -> float:
        longest = 0.0
        for number in range(1000):
            before = time.monotonic()
            log.info("agent", None, str(number))
            longest = max(longest, time.monotonic() - before)
            await asyncio.sleep(0)
        return longest

    broker.freeze()
    try:
        longest = asyncio.run(main())
    finally:
        broker.thaw()
    assert longest < 2, "the broker hangs for 5 s"
    assert log.flush(30)
    wait_until(lambda: len(queued(broker)) == 1000, "all records", 30)


def test_a_coroutine_waits_for_room_and_the_loop_goes_on(made: Any, broker: BrokerProcess) -> None:
    log = made(buffer=20, batch=10, overflow="block")

    async def fill() -> None:
        for number in range(200):
            await log.alog("info", "agent", None, str(number))

    async def main() -> int:
        filling = asyncio.create_task(fill())
        turns = 0
        broker.freeze()
        for _ in range(50):
            await asyncio.sleep(0.01)
            turns += 1
        assert not filling.done()
        broker.thaw()
        await filling
        await log.aflush()
        return turns

    assert asyncio.run(main()) == 50
    assert sorted(map(int, queued(broker))) == list(range(200))
    assert log.stats().spooled == 0


POLICIES = ["block", "drop_oldest", "drop_newest", "spool"]


@pytest.mark.parametrize("policy", POLICIES)
def test_memory_is_bounded_and_every_record_accounted_for(
    policy: str, made: Any, broker: BrokerProcess, stack: LogStack
) -> None:
    log = made(buffer=500, batch=10, overflow=policy, max_batch=100)
    most = 0
    broker.freeze()
    thaw = threading.Timer(1.0, broker.thaw)
    thaw.start()
    for number in range(5000):
        log.info("agent", None, str(number))
        most = max(most, log.stats().buffered)
    thaw.join()
    assert most <= 500 + (AT_ONCE if policy == "spool" else 0)
    log.close()
    stats = log.stats()
    arrived = [int(message) for message in queued(broker)]
    assert stats.accepted == 5000
    assert len(arrived) + sum(stats.dropped.values()) == 5000
    if policy == "block":
        assert arrived == list(range(5000))
    elif policy == "spool":
        assert sorted(arrived) == list(range(5000))
        assert stats.spooled > 0
    else:
        assert stats.dropped["buffer full"] > 0
        assert stack_drops(stack) == dict(stats.dropped)
        assert (4999 in arrived) == (policy == "drop_oldest")


def test_the_few_that_wait_to_be_put_aside_leave_with_the_others(
    made: Any, broker: BrokerProcess
) -> None:
    log = made(buffer=5, batch=1000, interval=3600, overflow="spool")
    for number in range(10 + AT_ONCE):
        log.info("agent", None, str(number))
    assert log.stats().buffered == 10, "five in the buffer, five to be put aside"
    assert log.stats().spooled == AT_ONCE
    assert log.flush(10)
    assert log.stats().buffered == 0
    assert sorted(map(int, queued(broker))) == list(range(10 + AT_ONCE))
    for number in range(10):
        log.info("agent", None, str(number))
    log.close(10)
    assert len(queued(broker)) == 20 + AT_ONCE
    assert log.stats().accepted == 20 + AT_ONCE


def stack_drops(stack: LogStack) -> dict[str, int]:
    found = LogDirectory(stack.settings.run_dir).dropped()
    return {reason: one.count for reason, one in found.items()}


def test_an_outage_is_spooled_and_replayed_in_order(
    made: Any, broker: BrokerProcess, stack: LogStack
) -> None:
    log = made(interval=0.1, batch=10)
    log.info("agent", None, "before")
    assert log.flush(10)
    broker.kill()
    for number in range(100):
        log.info("agent", None, str(number))
        if number % 10 == 9:
            assert log.flush(10)
    assert log.stats().spooled >= 90
    assert kept(LogDirectory(stack.settings.run_dir).spool).bytes > 0
    broker.start()
    wait_until(lambda: len(queued(broker)) == 101, "what was spooled", 20)
    assert queued(broker) == ["before", *map(str, range(100))]
    assert kept(LogDirectory(stack.settings.run_dir).spool).bytes == 0


def test_what_the_cap_of_the_spool_takes_no_more_is_counted_exactly(
    made: Any, broker: BrokerProcess, stack: LogStack
) -> None:
    log = made(interval=0.1, batch=10, max_spool=100_000)
    broker.kill()
    for number in range(3000):
        log.info("agent", None, f"{number:0100}")
        if number % 100 == 99:
            log.flush(10)
    assert log.flush(10)
    stats = log.stats()
    assert stats.accepted == 3000
    assert stats.spooled + stats.dropped["spool full"] == 3000
    assert 0 < stats.spooled < 3000
    assert stack_drops(stack) == {"spool full": stats.dropped["spool full"]}
    broker.start()
    wait_until(lambda: len(queued(broker)) == stats.spooled, "what was spooled", 20)


def test_the_fallback_drop_counts_what_it_drops(
    made: Any, broker: BrokerProcess, stack: LogStack
) -> None:
    log = made(fallback="drop")
    broker.kill()
    for number in range(70):
        log.info("agent", None, str(number))
    assert log.flush(10)
    assert log.stats().dropped == {"broker away": 70}
    shown = subprocess.run(
        ["cloche", "logs", "spool", "status"], env=stack.environ, capture_output=True, text=True
    )
    assert "dropped   70 records: broker away" in shown.stdout


def test_a_queue_at_its_cap_counts_as_an_outage(made: Any, broker: BrokerProcess) -> None:
    log = made(max_queued=3, interval=0.1)
    for number in range(6):
        log.info("agent", None, str(number))
        log.flush(10)
        time.sleep(0.25)  # the queue is looked at once a second
    assert log.stats().spooled > 0
    with broker.client() as client:
        taken = [client.rpop("logs") for _ in range(client.llen("logs"))]
    found = [one for raw in taken for one in messages(str(raw))]
    wait_until(lambda: len(found) + len(queued(broker)) == 6, "the rest", 10)
    assert found + queued(broker) == list("012345")


SCRIPT = """
import os, signal, sys, time
from cloche import ExecutionLogger
from tests.integration.logs_write.project import app
log = ExecutionLogger(app, interval=3600, **{options})
for number in range(30):
    log.info("agent", None, str(number))
print("logged", flush=True)
{end}
"""


def ended(stack: LogStack, end: str, **options: Any) -> subprocess.Popen[bytes]:
    """A process that logs 30 records and ends so."""
    return stack.process(
        ["-c", SCRIPT.format(options=options, end=end)], stack.directory / "ended.json"
    )


@pytest.mark.parametrize("end", ["pass", "del log; import gc; gc.collect()"])
def test_a_process_that_ends_sends_what_it_has(
    stack: LogStack, broker: BrokerProcess, end: str
) -> None:
    assert ended(stack, end).wait(60) == 0
    assert queued(broker) == [str(number) for number in range(30)]


def test_sigterm_sends_what_there_is_and_still_ends_the_process(
    stack: LogStack, broker: BrokerProcess
) -> None:
    process = ended(stack, "time.sleep(600)")
    wait_until(lambda: b"logged" in (stack.directory / "ended.json").read_bytes(), "it to log", 60)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == -signal.SIGTERM
    assert queued(broker) == [str(number) for number in range(30)]


def test_a_process_that_ends_while_the_broker_is_away_leaves_all_on_disk(
    stack: LogStack, broker: BrokerProcess
) -> None:
    broker.kill()
    assert ended(stack, "pass").wait(60) == 0
    assert in_spool(stack.settings.run_dir) == [str(number) for number in range(30)]
    broker.start()
    shown = subprocess.run(
        ["cloche", "logs", "spool", "replay"], env=stack.environ, capture_output=True, text=True
    )
    assert shown.stdout == "30 records sent\n", shown.stderr
    assert queued(broker) == [str(number) for number in range(30)]


def test_a_process_that_ends_while_the_broker_hangs_loses_nothing(
    stack: LogStack, broker: BrokerProcess
) -> None:
    end = """
log.flush()
open("flushed", "w")
while not os.path.exists("frozen"):
    time.sleep(0.01)
for number in range(30, 60):
    log.info("agent", None, str(number))
"""
    process = ended(stack, end)
    wait_until(lambda: (stack.directory / "flushed").exists(), "the first half", 60)
    broker.freeze()
    (stack.directory / "frozen").touch()
    try:
        assert process.wait(60) == 0
    finally:
        broker.thaw()
    left = in_spool(stack.settings.run_dir)
    wait_until(lambda: len(queued(broker)) >= 30, "the broker", 10)
    assert {*queued(broker), *left} == set(map(str, range(60)))


@pytest.mark.parametrize("end", ["os._exit(1)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_durable_records_outlive_a_crash(stack: LogStack, broker: BrokerProcess, end: str) -> None:
    assert ended(stack, end, durable=True, batch=1000).wait(60) != 0
    assert in_spool(stack.settings.run_dir) == [str(number) for number in range(30)]
    assert queued(broker) == []
    log = ExecutionLogger(stack.app, interval=0.1)  # whoever logs next sends them
    log.info("agent", None, "next")
    wait_until(lambda: len(queued(broker)) == 31, "the lost process's records", 10)
    assert sorted(queued(broker)) == sorted([*map(str, range(30)), "next"])
    log.close()


def test_a_crash_loses_no_more_than_the_buffer(stack: LogStack, broker: BrokerProcess) -> None:
    end = "log.flush(); log.info('agent', None, 'lost'); os._exit(1)"
    assert ended(stack, end).wait(60) == 1
    assert queued(broker) == [str(number) for number in range(30)]


def test_durable_records_are_sent_in_order(made: Any, broker: BrokerProcess) -> None:
    log = made(durable=True, interval=0.1)
    for number in range(300):
        log.info("agent", None, str(number))
    assert log.flush(10)
    wait_until(lambda: len(queued(broker)) == 300, "all", 10)
    assert queued(broker) == [str(number) for number in range(300)]
    assert log.stats().buffered == 0


def test_a_forked_child_sends_its_own_and_not_its_parents(made: Any, broker: BrokerProcess) -> None:
    log = made(interval=3600)
    log.info("agent", None, "parent 1")
    child = os.fork()
    if child == 0:
        log.info("agent", None, "child")
        log.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    log.info("agent", None, "parent 2")
    assert log.flush(10)
    assert sorted(queued(broker)) == ["child", "parent 1", "parent 2"]


def test_threads_may_share_a_logger(made: Any, broker: BrokerProcess) -> None:
    log = made(interval=0.05, batch=7)

    def work(name: int) -> None:
        for number in range(500):
            log.info("agent", None, f"{name}-{number}")

    threads = [threading.Thread(target=work, args=[name]) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log.flush(10)
    found = queued(broker)
    assert len(found) == len(set(found)) == 2000
    for name in range(4):
        own = [one for one in found if one.startswith(f"{name}-")]
        assert own == [f"{name}-{number}" for number in range(500)]


def test_a_logger_that_was_closed_opens_again(made: Any, broker: BrokerProcess) -> None:
    log = made(interval=0.1)
    log.info("agent", None, "1")
    log.close()
    log.info("agent", None, "2")
    wait_until(lambda: queued(broker) == ["1", "2"], "the second", 10)
