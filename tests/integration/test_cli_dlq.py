"""``cloche dlq`` on a real broker, with dead letters a real worker made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cloche.app import create_app
from cloche.settings import load
from cloche.testing import BrokerProcess, clean_environ, wait_until
from tests import commands
from tests.integration.app.conftest import StartWorker, start_worker

__all__ = ["start_worker"]


@pytest.fixture
def dlq(broker: BrokerProcess, tmp_path: Path) -> Dlq:
    return Dlq(broker, tmp_path)


class Dlq:
    def __init__(self, broker: BrokerProcess, directory: Path) -> None:
        self.environ = clean_environ(REDIS_URL=broker.url, CLOCHE_BROKER__TRANSPORT="cloche")
        self.directory = directory

    def run(self, *words: str, code: int = 0) -> str:
        done = commands.cloche("dlq", *words, cwd=self.directory, env=self.environ)
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr

    def letters(self) -> list[dict[str, object]]:
        found: list[dict[str, object]] = json.loads(self.run("list", "--json"))
        return found


def test_dead_letters_are_listed_shown_retried_and_purged(
    broker: BrokerProcess, dlq: Dlq, start_worker: StartWorker
) -> None:
    start_worker(broker.url, "-c", "1", CLOCHE_BROKER__TRANSPORT="cloche")
    app = create_app(
        "client",
        load({"broker.url": broker.url, "broker.transport": "cloche"}, environ={}).settings,
    )
    app.send_task("tasks.nobody.knows", (1,), task_id="lost-one", ignore_result=True)
    with broker.client() as client:
        client.lpush("default", "this is no message")

    def by_reason() -> dict[str, dict[str, object]]:
        return {str(letter["reason"]): letter for letter in dlq.letters()}

    # The worker tells its own reason a moment after it rejected.
    told = {"unknown-task", "undecodable"}
    wait_until(lambda: set(by_reason()) == told, "both to be dead, and why", 30)
    found = by_reason()
    unknown = str(found["unknown-task"]["id"])
    assert "tasks.nobody.knows" in dlq.run("list")
    assert "lost-one" in dlq.run("show", unknown)
    assert "this is no message" in dlq.run("show", str(found["undecodable"]["id"]))
    assert dlq.run("retry", unknown).strip() == "1 put back"
    wait_until(lambda: len(dlq.letters()) == 2, "it to die again", 30)
    assert dlq.run("purge", "--all").strip() == "2 deleted"
    assert dlq.letters() == []


def test_wrong_use_is_told(dlq: Dlq) -> None:
    assert "--all" in dlq.run("purge", code=2)
    assert "no dead letter" in dlq.run("show", "0123456789ab", code=1)
    dlq.environ["CLOCHE_BROKER__TRANSPORT"] = "stock"
    assert "only Cloche's transport" in dlq.run("list", code=2)
