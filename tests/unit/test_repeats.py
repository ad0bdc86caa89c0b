"""An outage costs a handful of log lines."""

from __future__ import annotations

import logging

import pytest

from cloche.app.repeats import Repeats


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> tuple[logging.Logger, list[float]]:
    clock = [0.0]
    logger = logging.Logger("outage")
    logger.addHandler(caplog.handler)
    logger.addFilter(Repeats(every=60, clock=lambda: clock[0]))
    return logger, clock


def test_the_first_passes_the_repeats_are_counted(
    told: tuple[logging.Logger, list[float]], caplog: pytest.LogCaptureFixture
) -> None:
    logger, clock = told
    for second in range(130):
        clock[0] = float(second)
        logger.error("cannot connect to %s: %s\nTrying again", "x", second)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "cannot connect to x: 0\nTrying again",
        "cannot connect to x: 60 (59 times more since)",
        "cannot connect to x: 120 (59 times more since)",
    ]


def test_different_messages_and_mere_information_always_pass(
    told: tuple[logging.Logger, list[float]], caplog: pytest.LogCaptureFixture
) -> None:
    logger, _ = told
    for _ in range(3):
        logger.info("connected")
    logger.error("one")
    logger.error("two")
    assert [record.getMessage() for record in caplog.records] == ["connected"] * 3 + ["one", "two"]


def test_a_traceback_comes_once(
    told: tuple[logging.Logger, list[float]], caplog: pytest.LogCaptureFixture
) -> None:
    logger, clock = told
    for second in (0, 30, 61):
        clock[0] = second
        try:
            raise ValueError("why")
        except ValueError:
            logger.exception("broken")
    assert [bool(record.exc_info) for record in caplog.records] == [True, False]
