"""Configured URL, else a running local server, else one of our own."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from cloche.broker.connection.choice import choose, find_local
from cloche.errors import BrokerError, BrokerFault
from cloche.settings.model import BrokerSettings
from cloche.testing import BrokerProcess, free_port


def settings(
    url: str | None = None, embedded: Literal["auto", "always", "never"] = "auto"
) -> BrokerSettings:
    return BrokerSettings.model_validate({"url": url, "embedded": embedded})


def test_a_configured_url_comes_first(broker: BrokerProcess, tmp_path: Path) -> None:
    choice = choose(settings("redis://me:s3cret@h/0"), tmp_path, port=broker.port)
    assert (choice.kind, choice.url) == ("configured", "redis://me:s3cret@h/0")
    assert choice.describe() == "configured redis://me:****@h/0"
    assert "s3cret" not in repr(choice)
    assert choice.survives is None


def test_a_running_local_server_comes_second(broker: BrokerProcess, tmp_path: Path) -> None:
    choice = choose(settings(), tmp_path, port=broker.port)
    assert (choice.kind, choice.url) == ("local", broker.url)
    assert choice.facts is not None
    assert choice.notes == ()
    assert choice.describe().startswith("running valkey 9.")
    assert find_local(port=broker.port) == broker.url


def test_a_broker_of_our_own_comes_last(tmp_path: Path) -> None:
    port = free_port()
    choice = choose(settings(), tmp_path, port=port)
    assert choice.kind == "embedded"
    assert choice.embedded is not None
    assert choice.embedded.directory == tmp_path / "broker"
    assert choice.notes[0] == f"nothing listens at 127.0.0.1:{port}"
    assert "(AOF, synced every second), run by " in choice.describe()
    assert choice.survives
    assert not list(tmp_path.iterdir()), "choosing writes nothing"


def test_a_local_server_that_cannot_be_used_is_passed_over_and_told(tmp_path: Path) -> None:
    with BrokerProcess(password="s3cret") as locked:
        choice = choose(settings(), tmp_path, port=locked.port)
        assert choice.kind == "embedded"
        assert "asks for a password" in choice.notes[0]
        with BrokerProcess(config={"replicaof": f"127.0.0.1 {locked.port}"}) as replica:
            assert "replica" in choose(settings(), tmp_path, port=replica.port).notes[0]
            assert find_local(port=replica.port) is None


def test_a_local_server_that_may_lose_messages_is_taken_with_a_caution(tmp_path: Path) -> None:
    config = {"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"}
    with BrokerProcess(config=config) as cache:
        choice = choose(settings(), tmp_path, port=cache.port)
        assert (choice.kind, choice.survives) == ("local", False)
        assert "loses all messages when it stops" in choice.notes[0]
        assert "allkeys-lru" in choice.notes[1]


def test_always_takes_our_own_and_says_what_it_ignores(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    choice = choose(settings("redis://:s3cret@h/0", "always"), tmp_path, port=broker.port)
    assert choice.kind == "embedded"
    assert "redis://:****@h/0 is not used" in choice.notes[0]


def test_never_takes_a_local_server_but_runs_none(broker: BrokerProcess, tmp_path: Path) -> None:
    assert choose(settings(embedded="never"), tmp_path, port=broker.port).kind == "local"
    with pytest.raises(BrokerError) as caught:
        choose(settings(embedded="never"), tmp_path, port=free_port())
    assert caught.value.fault is BrokerFault.REFUSED
    assert "nothing listens" in caught.value.why
