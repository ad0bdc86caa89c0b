"""An outage costs a handful of log lines."""

from __future__ import annotations

import logging

import pytest

from cloche.app.outage_reporter import RepeatLogFilter


class Told(logging.Handler):
    """What one logger printed, and it alone: another test's thread may still be speaking."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def lines(self) -> list[str]:
        return [record.getMessage() for record in self.records]


@pytest.fixture
def told() -> tuple[logging.Logger, list[float], Told]:
    clock, printed = [0.0], Told()
    logger = logging.Logger("outage")
    logger.addHandler(printed)
    logger.addFilter(RepeatLogFilter(every=60, clock=lambda: clock[0]))
    return logger, clock, printed


def test_the_first_passes_the_repeats_are_counted(
    told: tuple[logging.Logger, list[float], Told],
) -> None:
    logger, clock, printed = told
    for second in range(130):
        clock[0] = float(second)
        logger.error("cannot connect to %s: %s\nTrying again", "x", second)
    assert printed.lines == [
        "cannot connect to x: 0\nTrying again",
        "cannot connect to x: 60 (59 times more since)",
        "cannot connect to x: 120 (59 times more since)",
    ]


def test_different_messages_and_mere_information_always_pass(
    told: tuple[logging.Logger, list[float], Told],
) -> None:
    logger, _, printed = told
    for _ in range(3):
        logger.info("connected")
    logger.error("one")
    logger.error("two")
    assert printed.lines == ["connected"] * 3 + ["one", "two"]


def test_a_traceback_comes_once(
    told: tuple[logging.Logger, list[float], Told],
) -> None:
    logger, clock, printed = told
    for second in (0, 30, 61):
        clock[0] = second
        try:
            raise ValueError("why")
        except ValueError:
            logger.exception("broken")
    assert [bool(record.exc_info) for record in printed.records] == [True, False]
