"""Each production default takes effect where it matters: on live workers and connections."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.result import AsyncResult

from cloche.testing import BrokerProcess, free_port, wait_until
from tests.integration.app.conftest import StartWorker

ClientApp = Callable[..., Celery]
IGNORED = {"ignore_result": True}


def lines(ledger: Path) -> list[str]:
    return ledger.read_text().splitlines() if ledger.exists() else []


def test_a_worker_waits_for_a_broker_that_comes_later(
    start_worker: StartWorker, client_app: ClientApp
) -> None:
    port = free_port()
    worker = start_worker(f"redis://127.0.0.1:{port}/0", ready=False)
    wait_until(lambda: "the broker does not answer" in worker.output, "a failed try", 30)
    with BrokerProcess(port=port):
        worker.wait_ready()


def test_a_read_only_broker_does_not_end_the_worker(
    broker: BrokerProcess, start_worker: StartWorker, client_app: ClientApp, tmp_path: Path
) -> None:
    worker = start_worker(broker.url, "-c", "1")
    app, client = client_app(broker.url), broker.client()
    client.replicaof("127.0.0.1", str(free_port()))
    wait_until(lambda: "the broker does not answer" in worker.output, "the worker to notice", 30)
    client.replicaof("NO", "ONE")
    ledger = tmp_path / "ledger"
    app.send_task("tasks.probe.note", (str(ledger), "after"))
    wait_until(lambda: lines(ledger)[1:], "a task after the failover", 40)
    assert not worker.ended
    assert worker.output.count("the broker ") < 10, "one voice, not a storm"


def test_a_worker_outlasts_an_outage_that_its_own_limit_of_tries_would_not(
    broker: BrokerProcess, start_worker: StartWorker, client_app: ClientApp, tmp_path: Path
) -> None:
    stock = {"CLOCHE_BROKER__TRANSPORT": "stock"}
    patient = start_worker(broker.url, "-c", "1", "--name", "patient", **stock)
    hasty = start_worker(broker.url, "-c", "1", "--name", "hasty", PROBE_MAX_RETRIES="1", **stock)
    broker.kill()
    wait_until(lambda: hasty.ended, "the hasty one to give up", 60)
    assert not patient.ended
    broker.start()
    ledger = tmp_path / "ledger"
    client_app(broker.url).send_task("tasks.probe.note", (str(ledger), "after"), **IGNORED)
    wait_until(lambda: lines(ledger)[1:], "a task after the outage", 60)
    assert patient.output.count("the broker ") < 5, "one voice, not a storm"


def test_beat_keeps_its_schedule_on_the_broker_and_looks_often(
    broker: BrokerProcess, start_worker: StartWorker, tmp_path: Path
) -> None:
    beat = start_worker(broker.url, "-l", "DEBUG", command="beat", ready=False)
    client = broker.client()
    wait_until(lambda: client.llen("default") > 2, "scheduled tasks", 30)
    assert "max interval->5.00 seconds" in beat.output
    assert set(client.hkeys("cloche:beat:probe:runs")) == {"cloche-expire-logs", "tick"}
    assert not list(tmp_path.glob("**/*beat-schedule*"))
    beat.process.terminate()
    assert beat.process.wait(10) == 0


def test_tasks_run_with_what_their_family_and_the_defaults_say(
    broker_url: str, start_worker: StartWorker, client_app: ClientApp
) -> None:
    start_worker(
        broker_url,
        "-c",
        "1",
        CLOCHE_FAMILIES__PROBE__QUEUE="probes",
        CLOCHE_FAMILIES__PROBE__MAX_RETRIES="7",
        CLOCHE_FAMILIES__PROBE__RETRY_DELAY="2",
        CLOCHE_FAMILIES__PROBE__SOFT_TIME_LIMIT="8",
        CLOCHE_FAMILIES__PROBE__TIME_LIMIT="9",
        CLOCHE_TIMEZONE="Asia/Shanghai",
    )
    app = client_app(broker_url)
    seen = app.send_task("tasks.probe.limits", queue="probes").get(timeout=20)
    assert (seen["max_retries"], seen["retry_delay"]) == (7, 2)
    assert (seen["acks_late"], seen["reject"], seen["retry"]) == (True, False, True)
    assert seen["utc_offset"] == 8 * 3600
    pool = app.control.inspect(timeout=2).stats()
    (stats,) = [s for s in pool.values() if s["pool"]["max-tasks-per-child"]]
    assert stats["pool"]["max-tasks-per-child"] == 1000
    assert stats["prefetch_count"] == 1


def test_a_familys_time_limit_ends_its_task(
    broker_url: str, start_worker: StartWorker, client_app: ClientApp
) -> None:
    start_worker(
        broker_url,
        "-c",
        "1",
        "-Q",
        "limited",
        CLOCHE_FAMILIES__PROBE__QUEUE="limited",
        CLOCHE_FAMILIES__PROBE__SOFT_TIME_LIMIT="1",
        CLOCHE_FAMILIES__PROBE__TIME_LIMIT="5",
    )
    result = client_app(broker_url).send_task("tasks.probe.hang", queue="limited")
    with pytest.raises(Exception, match="SoftTimeLimitExceeded"):
        result.get(timeout=30)


@pytest.mark.parametrize("transport", ["cloche", "stock"])
def test_a_killed_workers_task_comes_back_soon(
    broker: BrokerProcess,
    start_worker: StartWorker,
    client_app: ClientApp,
    tmp_path: Path,
    transport: str,
) -> None:
    """acks_late; the lease, or visibility_timeout and the restore interval (stock: 100 s more)."""
    soon = {
        "CLOCHE_BROKER__TRANSPORT": transport,
        "CLOCHE_BROKER__VISIBILITY_TIMEOUT": "2",
        "CLOCHE_BROKER__LEASE": "2",
    }
    first = start_worker(broker.url, "-c", "1", "--name", "first", **soon)
    ledger = tmp_path / "ledger"
    client_app(broker.url).send_task("tasks.probe.note", (str(ledger), "x", 1.5))
    wait_until(lambda: lines(ledger), "the task to start")
    first.process.kill()
    first.process.wait(10)
    start_worker(broker.url, "-c", "1", "--name", "second", **soon)
    wait_until(lambda: lines(ledger).count("start x") == 2, "the task to run again", 40)


def test_a_task_that_kills_its_process_is_retried_and_then_given_up(
    broker_url: str, start_worker: StartWorker, client_app: ClientApp, tmp_path: Path
) -> None:
    start_worker(
        broker_url,
        "-c",
        "1",
        "-Q",
        "deadly",
        CLOCHE_FAMILIES__PROBE__MAX_RETRIES="2",
        CLOCHE_FAMILIES__PROBE__RETRY_DELAY="0",
    )
    ledger = tmp_path / "ledger"
    result = client_app(broker_url).send_task(
        "tasks.probe.kill_self", (str(ledger),), queue="deadly"
    )
    with pytest.raises(Exception, match=r"WorkerLostError|signal 9"):
        result.get(timeout=60)
    assert lines(ledger) == ["start"] * 3


def test_a_worker_told_to_hurry_lets_running_tasks_finish(
    broker: BrokerProcess, start_worker: StartWorker, client_app: ClientApp, tmp_path: Path
) -> None:
    worker = start_worker(broker.url, "-c", "1", CLOCHE_STOP__SOFT="2")
    ledger = tmp_path / "ledger"
    client_app(broker.url).send_task("tasks.probe.note", (str(ledger), "x", 1))
    wait_until(lambda: lines(ledger), "the task to start")
    worker.process.send_signal(signal.SIGQUIT)
    worker.process.wait(30)
    assert lines(ledger) == ["start x", "end x"]


def test_messages_that_are_not_json_are_refused(
    broker_url: str, start_worker: StartWorker, client_app: ClientApp, tmp_path: Path
) -> None:
    worker = start_worker(broker_url, "-c", "1", "-Q", "strict")
    ledger, app = tmp_path / "ledger", client_app(broker_url)
    for serializer in ("pickle", "json"):
        app.send_task(
            "tasks.probe.note", (str(ledger), serializer), queue="strict", serializer=serializer
        )
    wait_until(lambda: "end json" in lines(ledger), "the JSON task")
    assert lines(ledger) == ["start json", "end json"]
    wait_until(lambda: "ContentDisallowed" in worker.output, "the refusal in the log", 10)


def test_results_expire_and_tell_their_task(
    broker_url: str, start_worker: StartWorker, client_app: ClientApp, tmp_path: Path
) -> None:
    start_worker(broker_url, "-c", "1", "-Q", "expiring")
    app = client_app(broker_url)
    result: AsyncResult = app.send_task(
        "tasks.probe.note", (str(tmp_path / "l"), "x", 1), queue="expiring"
    )
    wait_until(lambda: result.state == "STARTED", "STARTED to be stored")
    result.get(timeout=20)
    assert (result.name, result.queue) == ("tasks.probe.note", "expiring")
    ttl = app.backend.client.ttl(app.backend.get_key_for_task(result.id).decode())
    assert 3500 < ttl <= 3600


def test_events_tell_sent_received_started_and_succeeded(
    broker_url: str, start_worker: StartWorker, client_app: ClientApp, tmp_path: Path
) -> None:
    start_worker(broker_url, "-c", "1", "-Q", "eventful")
    app, seen, listening = client_app(broker_url), [], threading.Event()
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(
            connection, handlers={"*": lambda event: seen.append(event["type"])}
        )

        def listen() -> None:
            for _ in receiver.itercapture(wakeup=False):
                listening.set()

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        assert listening.wait(10)
        app.send_task("tasks.probe.note", (str(tmp_path / "l"), "x"), queue="eventful")
        wait_until(lambda: "task-succeeded" in seen, "the last event")
        receiver.should_stop = True
        thread.join(10)
    told = [kind for kind in seen if kind.startswith("task-")]
    assert sorted(told) == ["task-received", "task-sent", "task-started", "task-succeeded"]


def test_one_worker_does_not_hoard_what_others_could_run(
    broker: BrokerProcess, start_worker: StartWorker, client_app: ClientApp, tmp_path: Path
) -> None:
    start_worker(broker.url, "-c", "1")
    app, ledger = client_app(broker.url), tmp_path / "ledger"
    for number in range(5):
        app.send_task("tasks.probe.note", (str(ledger), str(number), 3))
    wait_until(lambda: lines(ledger), "the first task")
    # One runs and, with late acks, one place of prefetch is all it has.
    assert broker.client().llen("default") == 4


def test_eta_tasks_do_not_fill_the_workers_memory_without_end(
    broker: BrokerProcess, start_worker: StartWorker, client_app: ClientApp
) -> None:
    start_worker(broker.url, "-c", "1", CLOCHE_BROKER__TRANSPORT="stock")
    app, client = client_app(broker.url, broker__transport="stock"), broker.client()
    with app.pool.acquire() as connection:
        for _ in range(1010):
            app.send_task("tasks.probe.limits", countdown=3600, connection=connection, **IGNORED)
    wait_until(lambda: client.llen("default") < 20, "the worker to take what it may", 30)

    def prefetch() -> int:
        (stats,) = app.control.inspect(timeout=2).stats().values()
        return int(stats["prefetch_count"])

    wait_until(lambda: prefetch() >= 1000, "the limit to be reached", 30)
    assert prefetch() == 1000
    assert client.llen("default") > 0


def test_a_new_worker_learns_from_its_neighbours_which_tasks_are_revoked(
    broker: BrokerProcess, start_worker: StartWorker, client_app: ClientApp
) -> None:
    app = client_app(broker.url)
    start_worker(broker.url, "-c", "1", "--name", "first")
    app.control.revoke("never-run-this")

    def revoked_at(name: str) -> list[str]:
        answers = app.control.inspect(timeout=2).revoked() or {}
        return [task for node, ids in answers.items() if node.startswith(name) for task in ids]

    wait_until(lambda: revoked_at("first"), "the first to know")
    second = start_worker(broker.url, "-c", "1", "--name", "second")
    assert "sync with 1 nodes" in second.output
    assert revoked_at("second") == ["never-run-this"]


def test_a_pool_process_over_its_memory_is_replaced(
    broker_url: str, start_worker: StartWorker, client_app: ClientApp
) -> None:
    worker = start_worker(
        broker_url,
        "-c",
        "1",
        "--name",
        "small",
        "-Q",
        "small",
        CLOCHE_WORKERS__SMALL__MAX_MEMORY_PER_CHILD="1M",
    )
    app = client_app(broker_url)

    def run(name: str, *arguments: object) -> Any:
        return app.send_task(name, arguments, queue="small").get(timeout=20)

    pids = [run("tasks.probe.limits")["pid"] for _ in range(3)]
    assert len(set(pids)) == 1, "what it needs from the beginning is no growth"
    run("tasks.probe.grow", 8)
    assert run("tasks.probe.limits")["pid"] not in pids
    assert "KiB more than after its first task (max_memory_per_child" in worker.output


def test_a_pool_process_is_replaced_after_its_number_of_tasks(
    broker_url: str, start_worker: StartWorker, client_app: ClientApp
) -> None:
    start_worker(
        broker_url,
        "-c",
        "1",
        "--name",
        "brief",
        "-Q",
        "brief",
        CLOCHE_WORKERS__BRIEF__MAX_TASKS_PER_CHILD="2",
    )
    app = client_app(broker_url)
    pids = [
        app.send_task("tasks.probe.limits", queue="brief").get(timeout=20)["pid"] for _ in range(4)
    ]
    assert pids[0] == pids[1] != pids[2] == pids[3]


def test_a_stock_worker_of_a_hardened_application_has_the_defaults_too(
    broker_url: str, start_worker: StartWorker, client_app: ClientApp
) -> None:
    start_worker(broker_url, "-c", "1", "-Q", "stock", "-n", "stock@%h", stock=True)
    seen = client_app(broker_url).send_task("tasks.probe.limits", queue="stock").get(timeout=20)
    assert (seen["acks_late"], seen["retry_delay"]) == (True, 60)


def test_an_asyncio_worker_of_stock_celery_is_not_renewed_after_a_thousand_tasks(
    broker_url: str, start_worker: StartWorker, client_app: ClientApp
) -> None:
    pool = {"CELERY_CUSTOM_WORKER_POOL": "cloche.aio.pool:TaskPool"}
    start_worker(broker_url, "-P", "custom", "-c", "5", "-n", "loop@%h", stock=True, **pool)
    inspect = client_app(broker_url).control.inspect(timeout=2, limit=1)
    # A question asked before the worker subscribes to them is never heard.
    ((_, stats),) = wait_until(inspect.stats, "an answer", 30).items()
    assert stats["pool"]["max-tasks-per-child"] == "N/A"
