"""Python's logging and structlog as sources of execution logs."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from cloche.logs.context import scope
from cloche.logs.sources.stdlib import ExecutionLogHandler, level_of
from cloche.logs.sources.structlog import ExecutionLogProcessor
from tests.unit.logs.test_run import Book


@pytest.fixture
def book() -> Book:
    return Book()


@pytest.fixture
def source(book: Book) -> Iterator[logging.Logger]:
    logger = logging.getLogger("shop.orders")
    handler = ExecutionLogHandler(book, level="DEBUG")
    logger.addHandler(handler)
    logger.setLevel("DEBUG")
    logger.propagate = False
    yield logger
    logger.removeHandler(handler)


def test_a_line_of_logging_becomes_a_record(source: logging.Logger, book: Book) -> None:
    source.info(
        "sold %d pots", 3,
        extra={"run_id": "r1", "step": "sell", "agent": "till", "duration_ms": 1.5, "shelf": 7},
    )  # fmt: skip
    (line,) = book.lines
    assert (line["level"], line["category"], line["step"]) == ("info", "shop.orders", "sell")
    assert (line["message"], line["run"], line["took"]) == ("sold 3 pots", "r1", 1.5)
    assert line["details"] == {"shelf": 7}


def test_what_is_not_said_comes_from_the_surroundings(source: logging.Logger, book: Book) -> None:
    with scope(run_id="r2", category="work"), scope(step="sell"):
        source.warning("few left")
    (line,) = book.lines
    assert (line["run"], line["step"], line["category"]) == ("r2", "sell", "work")


def test_an_exception_goes_into_the_details(source: logging.Logger, book: Book) -> None:
    try:
        raise KeyError("pot")
    except KeyError:
        source.exception("no such thing")
    (line,) = book.lines
    assert line["level"] == "error"
    assert line["details"]["exception"] == "KeyError"
    assert "raise KeyError" in line["details"]["traceback"]


@pytest.mark.parametrize(
    ("number", "name"),
    [(5, "debug"), (10, "debug"), (25, "info"), (30, "warning"), (45, "error"), (99, "critical")],
)
def test_levels_between_ours_are_the_one_below(number: int, name: str) -> None:
    assert level_of(number) == name


def test_what_the_pipeline_says_makes_no_records() -> None:
    """Else each record would make the next one, without end."""
    book = Book()
    root = logging.Logger("root")
    handler = ExecutionLogHandler(book)

    def say(name: str, message: str, *args: object) -> None:
        record = root.makeRecord(name, logging.WARNING, "", 0, message, args, None)
        handler.handle(record)

    for name in (
        "cloche.logs.write.flusher",
        "kombu",
        "kombu.connection",
        "redis",
        "cloche.broker.x",
    ):
        say(name, "away")
    say("celery.app.trace", "Task %(name)s[%(id)s] done", {"name": "cloche.logs.write", "id": "1"})
    assert book.lines == []
    say("celery.app.trace", "Task %(name)s[%(id)s] done", {"name": "shop.sell", "id": "1"})
    say("kombucha", "is tea")
    assert [line["message"] for line in book.lines] == ["Task shop.sell[1] done", "is tea"]


def test_a_logger_that_logs_about_itself_is_heard_once(source: logging.Logger) -> None:
    class Talkative(Book):
        def log(self, *args: object, **fields: object) -> None:
            source.error("something about the log")
            super().log(*args, **fields)  # type: ignore[arg-type]

    book = Talkative()
    source.handlers[:] = [ExecutionLogHandler(book)]
    source.error("said")
    assert [line["message"] for line in book.lines] == ["said"]


def test_a_handler_never_raises(book: Book, capsys: pytest.CaptureFixture[str]) -> None:
    args = ("no number",)
    record = logging.LogRecord("shop", logging.INFO, "", 0, "%d", args, None)
    ExecutionLogHandler(book).handle(record)
    assert book.lines == []
    assert "no number" in capsys.readouterr().err


@pytest.fixture
def events(book: Book) -> Iterator[list[tuple[str, dict[str, object]]]]:
    """structlog with our processor, and what came out at the end of its chain."""
    out: list[tuple[str, dict[str, object]]] = []

    def keep(_: object, method: str, event: Any) -> str:
        out.append((method, dict(event)))
        raise structlog.DropEvent

    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, ExecutionLogProcessor(book), keep]
    )
    yield out
    structlog.reset_defaults()


def test_an_event_of_structlog_becomes_a_record_and_goes_on(
    book: Book, events: list[tuple[str, dict[str, object]]]
) -> None:
    log = structlog.get_logger().bind(run_id="r1", order=42)
    log.info("sold", step="sell", agent="till")
    log.warn("few left")
    first, second = book.lines
    assert (first["message"], first["run"], first["step"]) == ("sold", "r1", "sell")
    assert (first["category"], first["details"]) == ("structlog", {"order": 42})
    assert second["level"] == "warning"
    assert [method for method, _ in events] == ["info", "warning"]
    assert events[0][1]["event"] == "sold"


def test_an_exception_of_structlog_goes_into_the_details(
    book: Book, events: list[tuple[str, dict[str, object]]]
) -> None:
    try:
        raise OSError("no shelf")
    except OSError:
        structlog.get_logger().exception("broken")
    (line,) = book.lines
    assert line["level"] == "error"
    assert line["details"]["error"] == "no shelf"
    assert len(events) == 1


def test_it_can_be_the_end_of_the_chain(book: Book) -> None:
    processor = ExecutionLogProcessor(book, last=True)
    with pytest.raises(structlog.DropEvent):
        processor(None, "critical", {"event": "the end"})
    assert book.said() == [("critical", "the end")]


def test_without_structlog_its_module_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "structlog", None)
    monkeypatch.delitem(sys.modules, "cloche.logs.sources.structlog")
    from cloche.errors import ExtraMissingError

    with pytest.raises(ExtraMissingError, match="structlog is not installed"):
        import cloche.logs.sources.structlog  # noqa: F401
