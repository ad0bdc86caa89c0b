"""Which workers hang, judged from what was seen."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cloche.health.hung import HungWorkers
from cloche.process.heartbeat import Heartbeat

PULSE = Heartbeat(
    *("one@host", 7, 1.0, "boot", 0.0, 0.0, True, ("default",), "prefork", 2, 0, 0, 5, False)
)


def look(judge: HungWorkers, heartbeat: Heartbeat, now: float, **seen: object) -> object:
    options: dict[str, object] = {"waiting": 3, "stopped": False, "cpu": 1.0, **seen}
    return judge.hear(heartbeat, options.pop("waiting"), now=now, **options)  # type: ignore[arg-type]


def alive(heartbeat: Heartbeat, now: float) -> Heartbeat:
    return replace(heartbeat, at=now, turned=now)


@pytest.mark.parametrize(
    ("heartbeat", "seen", "why"),
    [
        (lambda now: PULSE, {"stopped": True}, "it is stopped by a signal"),
        (lambda now: PULSE, {}, "it gives no sign of life"),
        (lambda now: replace(PULSE, at=now), {}, "its loop stands still"),
        (lambda now: replace(PULSE, at=now, active=1), {}, "its loop stands still"),
        (lambda now: alive(PULSE, now), {}, "it fetches nothing"),
        (lambda now: replace(alive(PULSE, now), connected=False), {}, "it does not connect"),
        (lambda now: replace(PULSE, active=1), {}, "it gives no sign of life"),
    ],
)
def test_a_hung_worker_is_told_in_what_way(heartbeat: object, seen: object, why: str) -> None:
    judge = HungWorkers(60)
    found = [look(judge, heartbeat(now), now, **seen) for now in range(100, 180, 10)]  # type: ignore
    assert found[:6] == [None] * 6, "not before a minute"
    verdict = next(one for one in found if one is not None)
    assert why in verdict.why  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("heartbeat", "seen"),
    [
        (lambda now: PULSE, {"waiting": 0, "stopped": True}),
        (lambda now: replace(alive(PULSE, now), active=2), {}),
        (lambda now: replace(alive(PULSE, now), reserved=1), {}),
        (lambda now: replace(PULSE, at=now, active=1, alone=True), {}),
        (lambda now: replace(alive(PULSE, now), processed=int(now)), {}),
        (lambda now: replace(alive(PULSE, now), pid=int(now)), {}),
    ],
)
def test_others_are_left_alone(heartbeat: object, seen: object) -> None:
    judge = HungWorkers(60)
    for now in range(100, 400, 10):
        assert look(judge, heartbeat(now), now, **seen) is None  # type: ignore


def test_a_task_that_holds_the_interpreter_is_busy_as_long_as_it_computes() -> None:
    judge = HungWorkers(60)
    busy = replace(PULSE, active=1)
    for now in range(100, 300, 10):
        assert look(judge, busy, now, cpu=float(now)) is None


def test_an_outage_begins_the_count_anew() -> None:
    judge = HungWorkers(60)
    for now in range(100, 160, 10):
        look(judge, PULSE, now)
    judge.forget()
    assert [look(judge, PULSE, now) for now in range(160, 220, 10)] == [None] * 6
