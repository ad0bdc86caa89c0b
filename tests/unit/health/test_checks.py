"""The registry of checks, and what its views make of it."""

from __future__ import annotations

import time
from pathlib import Path

from cloche.cli import health as command
from cloche.health.checks import CHECKS, NEEDED, Scene, findings
from cloche.process.events import RestartedWorker
from cloche.records import Health, QueueSeen, Snapshot
from cloche.settings import Settings

#: Kinds that compare over time, or are whatever somebody adds: no command can ask for them.
ONLY_LIVE = {"events", "others"}


def test_the_command_offers_the_kinds_of_the_registry() -> None:
    assert set(command._KINDS) == {check.kind for check in CHECKS} - ONLY_LIVE
    assert command._NEEDED == NEEDED


def test_a_worker_that_hung_and_was_restarted_is_a_warning_and_no_failure() -> None:
    one = RestartedWorker("mail@host", "it fetches nothing", time.time())
    scene = Scene(Settings(), Snapshot(1.0), restarts={"mail": one})
    (found,) = findings(scene, ["restarts"])
    assert (found.ok, found.warns) == (False, True)
    assert not command._is_bad(found)
    assert "warn" in command._mark(found)


def test_a_check_that_fails_itself_is_a_bad_verdict_without_passwords() -> None:
    def away() -> frozenset[str]:
        raise OSError("redis://user:secret@host is away")

    scene = Scene(Settings(), Snapshot(1.0, queues=(QueueSeen("mail", 1),)), paused=away)
    (found,) = findings(scene, ["queues"])
    assert not found.ok
    assert "secret" not in found.detail
    assert command._is_bad(found)


def test_what_cannot_be_seen_is_not_judged() -> None:
    blind = Snapshot(1.0, (Health("broker", False, "away"),), gaps=("The broker is away.",))
    told = {one.name: one.detail for one in findings(Scene(Settings(), blind), command._KINDS)}
    assert told == {"broker": "away", "workers": "The broker is away."}


def test_nothing_to_tell_is_written_all_the_same(tmp_path: Path) -> None:
    command._write((), as_json=False)
