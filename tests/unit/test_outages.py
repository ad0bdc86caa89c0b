"""One voice in an outage, on a clock of its own pace."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest

from cloche.outages import OutageReporter
from cloche.testing import wait_until


class Thing:
    """It is away, or there."""

    def __init__(self) -> None:
        self.there = threading.Event()

    def answers(self) -> None:
        if not self.there.is_set():
            raise ConnectionError("away")


@pytest.fixture
def voices() -> Iterator[list[OutageReporter]]:
    """What a test puts here falls silent with it: the next test reads the log too."""
    made: list[OutageReporter] = []
    yield made
    for voice in made:
        voice.rest()
        thread = voice._thread
        if thread is not None:
            thread.join(10)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "cloche.outages"]


def test_a_line_when_it_begins_reminders_and_one_when_it_is_over(
    caplog: pytest.LogCaptureFixture, voices: list[OutageReporter]
) -> None:
    caplog.set_level(logging.WARNING)
    thing = Thing()
    voice = OutageReporter("the thing", thing.answers, "all wait", remind=0.3, ask=0.02)
    voices.append(voice)
    for _ in range(500):
        voice.failed("refused")
    assert lines(caplog) == ["the thing does not answer (refused): all wait"]
    wait_until(lambda: len(lines(caplog)) == 3, "two reminders")
    assert lines(caplog)[1].startswith("the thing is away for ")
    assert voice.away
    thing.there.set()
    wait_until(lambda: not voice.away, "the end")
    wait_until(lambda: len(lines(caplog)) == 4, "its line")
    assert lines(caplog)[3].startswith("the thing answers again, after ")


def test_one_that_comes_and_goes_is_told_of_once_a_while(
    caplog: pytest.LogCaptureFixture, voices: list[OutageReporter]
) -> None:
    caplog.set_level(logging.WARNING)
    thing = Thing()
    voice = OutageReporter("the thing", thing.answers, "all wait", remind=1.0, ask=0.01)
    voices.append(voice)
    for _ in range(10):
        thing.there.clear()
        voice.failed("refused")
        thing.there.set()
        wait_until(lambda: not voice.away, "it to be back")
    wait_until(lambda: len(lines(caplog)) >= 3, "the summary")
    first, end, summary, *rest = lines(caplog)
    assert first == "the thing does not answer (refused): all wait"
    assert end.startswith("the thing answers again, after ")
    assert summary.startswith("the thing was away ")
    assert len(rest) <= 1


def test_one_that_nobody_needs_any_more_is_not_told_of(
    caplog: pytest.LogCaptureFixture, voices: list[OutageReporter]
) -> None:
    caplog.set_level(logging.WARNING)
    thing = Thing()
    voice = OutageReporter("the thing", thing.answers, "all wait", remind=0.1, ask=0.01)
    voices.append(voice)
    voice.failed("refused")
    voice.rest()
    wait_until(lambda: voice._thread is None, "its thread to end")
    assert lines(caplog) == ["the thing does not answer (refused): all wait"]
    thing.there.set()
    voice.failed("again")  # and is needed again
    wait_until(lambda: not voice.away, "the end")
