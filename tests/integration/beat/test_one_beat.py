"""Of two schedulers on one broker one sends; no run is sent twice, none is lost unnoticed."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from cloche.testing import BrokerProcess, wait_until
from tests.integration.beat.conftest import StartBeat


def sent(broker: BrokerProcess, queue: str = "default") -> list[str]:
    """Ids of the messages of a queue, the oldest first."""
    with broker.client() as client:
        texts = client.lrange(queue, 0, -1)
    return [json.loads(text)["headers"]["id"] for text in reversed(texts)]


def runs(broker: BrokerProcess, name: str = "tick") -> int:
    with broker.client() as client:
        found = client.hget("cloche:beat:scheduled:runs", name)
    return int(json.loads(found.partition(" ")[2])["count"]) if found else 0


def test_the_second_stands_by_and_takes_over_within_the_locks_time(
    broker: BrokerProcess, start_beat: StartBeat
) -> None:
    first = start_beat(broker.url)
    first.wait_says("leads: 4 schedules")
    first.wait_says("schedule lost names the task tasks.scheduled.nobody, which is not registered")
    second = start_beat(broker.url)
    second.wait_says(f"stands by: the scheduler at work is pid {first.process.pid} on ")
    wait_until(lambda: runs(broker) >= 3, "runs of the first")
    assert "Sending due task tick" not in second.output

    first.process.send_signal(signal.SIGSTOP)  # as good as dead, and it will be back
    second.wait_says("leads: 4 schedules", 2 + 5)
    assert second.schedules()["scheduler"].startswith(f"pid {second.process.pid} on ")
    wait_until(lambda: "Sending due task tick" in second.output, "runs of the second")
    first.process.send_signal(signal.SIGCONT)
    first.wait_says(f"stands by: the scheduler at work is pid {second.process.pid} on ")
    count = runs(broker)
    wait_until(lambda: runs(broker) > count + 2, "further runs")
    second.process.send_signal(signal.SIGSTOP)
    # What the runs say was sent is what was sent: none twice, none that nobody knows of.
    assert len(sent(broker)) == runs(broker)
    second.process.send_signal(signal.SIGCONT)

    second.process.terminate()
    assert second.process.wait(10) == 0
    count = runs(broker)
    wait_until(lambda: runs(broker) > count, "the first again, at once", 1.9 + 3)
    first.process.terminate()
    assert first.process.wait(10) == 0
    assert len(sent(broker)) == runs(broker)


def test_a_scheduler_of_the_applications_own_sends_by_the_same_lock(
    broker: BrokerProcess, start_beat: StartBeat
) -> None:
    own = {"app": "tests.integration.beat.own"}
    first = start_beat(broker.url, **own)
    first.wait_says(f"pid {first.process.pid} decided on tick")
    second = start_beat(broker.url, **own)
    second.wait_says(f"stands by: the scheduler at work is pid {first.process.pid} on ")
    wait_until(lambda: runs(broker) >= 4, "runs")
    assert "decided on tick" not in second.output
    first.process.kill()
    second.wait_says(f"pid {second.process.pid} decided on tick", 2 + 5)
    second.process.send_signal(signal.SIGSTOP)
    assert len(sent(broker)) == runs(broker)


def test_an_outage_costs_two_lines_and_no_run_is_sent_twice(
    broker: BrokerProcess, start_beat: StartBeat
) -> None:
    beat = start_beat(broker.url)
    wait_until(lambda: runs(broker) > 1, "a run")
    broker.kill()
    beat.wait_says("the broker does not answer")
    time.sleep(2)  # the length of the outage, not a wait for something
    broker.start()
    beat.wait_says("the broker answers again, after")
    count = runs(broker)
    wait_until(lambda: runs(broker) > count + 2, "runs after it")
    beat.process.send_signal(signal.SIGSTOP)
    assert len(sent(broker)) == runs(broker)
    assert beat.output.count("WARNING") <= 4, beat.output
    assert "Traceback" not in beat.output


def test_a_scheduler_waits_for_a_broker_that_comes_later(start_beat: StartBeat) -> None:
    with BrokerProcess() as broker:
        broker.kill()
        beat = start_beat(broker.url)
        beat.wait_says("the broker does not answer")
        assert beat.process.poll() is None
        broker.start()
        beat.wait_says("Sending due task tick")


@pytest.mark.parametrize("transport", ["cloche", "stock"])
def test_schedules_of_the_settings_run_beside_the_applications_own(
    broker: BrokerProcess, start_beat: StartBeat, transport: str
) -> None:
    beat = start_beat(
        broker.url,
        CLOCHE_BROKER__TRANSPORT=transport,
        CLOCHE_BEAT__SCHEDULES='{"more": {"task": "tasks.scheduled.tick", "every": "500ms",'
        ' "queue": "aside", "kwargs": {"n": 1}, "expires": 60}, "tick": {"enabled": false},'
        ' "both": {"task": "tasks.scheduled.tick", "cron": "0 3 * * *"}}',
    )
    wait_until(lambda: len(sent(broker, "aside")) >= 2, "messages")
    found = beat.schedules()
    assert found["schedules"].keys() == {
        "cloche-expire-logs",
        "more",
        "lost",
        "both",
    }
    more, both = found["schedules"]["more"], found["schedules"]["both"]
    assert (more["source"], more["when"], more["queue"]) == ("settings", "every 0.5 s", "aside")
    assert more["last"] < more["next"]
    assert (both["when"], both["last"], both["missed"]) == ("cron 0 3 * * *", None, 0)
    assert found["schedules"]["lost"]["source"] == "application"
    assert sent(broker) == []
    with broker.client() as client:
        message = json.loads(client.lindex("aside", 0))
    assert message["headers"]["kwargsrepr"] == "{'n': 1}"
    assert message["headers"]["expires"]


@pytest.mark.parametrize("policy", ["once", "skip"])
def test_missed_runs_are_told_and_caught_up_as_asked(
    broker: BrokerProcess, start_beat: StartBeat, policy: str
) -> None:
    options = {
        "CLOCHE_BEAT__LATE": "1",
        "CLOCHE_BEAT__CATCH_UP": policy,
        "CLOCHE_BEAT__SCHEDULES": '{"tick": {"enabled": false}, "both": {"enabled": false},'
        ' "slow": {"task": "tasks.scheduled.tick", "every": "2s"}}',
    }
    first = start_beat(broker.url, **options)
    wait_until(lambda: runs(broker, "slow") == 1, "a run")
    first.process.terminate()
    assert first.process.wait(10) == 0

    def missed() -> bool:
        return bool(first.schedules()["schedules"]["slow"]["missed"] >= 2)

    wait_until(missed, "missed runs", 30)
    code, told = first.ask("health", "--only", "beat")
    assert code == 1
    assert "nobody sends" in told
    count = len(sent(broker))
    second = start_beat(broker.url, **options)
    second.wait_says("slow missed ")
    if policy == "once":
        second.wait_says(": it runs once now")
        wait_until(lambda: len(sent(broker)) > count, "the run", 1.9)
    else:
        second.wait_says(": they are skipped")
        assert len(sent(broker)) == count
        wait_until(lambda: len(sent(broker)) > count, "the next run")
    assert first.schedules()["schedules"]["slow"]["missed"] == 0


def test_without_redis_one_scheduler_per_run_directory_works(start_beat: StartBeat) -> None:
    url = "memory://"
    first = start_beat(url, "same")
    first.wait_says("this broker keeps no lock: one scheduler per run directory")
    first.wait_says("Sending due task tick")
    second = start_beat(url, "same")
    second.wait_says(f"stands by: the scheduler at work is pid {first.process.pid}")
    first.process.kill()
    second.wait_says("leads: ")


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ('{"task": "t", "cron": "61 * * * *"}', "this is no cron line"),
        ('{"task": "t", "cron": "* * *"}', "a cron line has 5 fields"),
        ('{"task": "t"}', "a schedule says either every"),
        ('{"task": "t", "every": 1, "cron": "* * * * *"}', "a schedule says either every"),
        ('{"every": 1}', "a schedule names its task"),
        ('{"task": "t", "evry": 1}', "did you mean 'beat.schedules.one.every'"),
    ],
)
def test_what_is_wrong_with_a_schedule_is_told(
    start_beat: StartBeat, schedule: str, words: str
) -> None:
    beat = start_beat("redis://127.0.0.1:1/0", CLOCHE_BEAT__SCHEDULES=f'{{"one": {schedule}}}')
    assert beat.process.wait(30) == 2
    assert words in beat.output


TASKS = """
from celery import Celery
app = Celery("tasks")
app.conf.task_default_queue = {queue!r}
app.conf.beat_schedule = {{{name!r}: {{"task": "tasks.{name}", "schedule": 1.0}}}}
"""


def test_two_applications_of_one_name_send_each_its_own(
    broker: BrokerProcess, start_beat: StartBeat, tmp_path: Path
) -> None:
    beats = {}
    for where, queue, name in (("a", "one", "x"), ("b", "two", "y"), ("c", "two", "z")):
        (tmp_path / where).mkdir()
        (tmp_path / where / "tasks.py").write_text(TASKS.format(queue=queue, name=name))
        beats[where] = start_beat(broker.url, where, app="tasks")
        beats[where].wait_says("stands by" if where == "c" else "leads: 1 schedule")
    wait_until(lambda: sent(broker, "one") and sent(broker, "two"), "both")
    # Of two that share a queue as well only one can be meant, and the other says so.
    beats["c"].wait_says("does not send z: if it is another application's, give one of the two")
    code, text = beats["c"].ask("health", "--only", "beat", app="tasks")
    assert code == 1
    assert "does not send z" in text
