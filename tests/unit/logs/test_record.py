"""What a record is, its id and time, and its line."""

from __future__ import annotations

import json
import os
import threading
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloche.logs import record as stamping
from cloche.logs.codec import MAX_LINE, Dead, Limits, RecordRow, decode, encode
from cloche.logs.record import LogRecord, stamp
from cloche.timestamps import first_id, micros

LIMITS = Limits(message=1000, details=1000)


def record(message: Any = "hello", **fields: Any) -> LogRecord:
    return LogRecord(*stamp(), "info", "agent", "plan", message, **fields)


def stored(one: LogRecord) -> RecordRow:
    row = decode(encode(one, LIMITS).rstrip(b"\n"))
    assert isinstance(row, RecordRow), row
    return row


def test_an_id_is_a_uuid_of_version_7_whose_milliseconds_are_the_time() -> None:
    one = record()
    assert one.id.version == 7
    assert one.id_text == str(one.id)
    assert one.id.variant == "specified in RFC 4122"
    assert one.id.int >> 80 == one.micros // 1000
    assert abs(datetime.now(UTC) - one.time) < timedelta(seconds=5)
    assert first_id(one.time) <= one.id < first_id(one.time + timedelta(milliseconds=1))


def test_ids_of_a_process_rise_strictly() -> None:
    ids = [record().id for _ in range(20_000)]
    assert ids == sorted(set(ids))


def test_ids_of_threads_are_unique_and_rise_in_each() -> None:
    found: list[list[UUID]] = [[] for _ in range(4)]

    def work(mine: list[UUID]) -> None:
        mine.extend(record().id for _ in range(5_000))

    threads = [threading.Thread(target=work, args=[mine]) for mine in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id for mine in found for id in mine}) == 20_000
    assert all(mine == sorted(mine) for mine in found)


def test_a_clock_set_back_does_not_set_ids_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = record()
    monkeypatch.setattr(stamping, "time_ns", lambda: (before.micros - 7_200_000_000) * 1000)
    after = record()
    assert after.id > before.id
    assert after.time == before.time


def test_a_forked_child_makes_other_ids() -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, "\n".join(str(stamp()[1]) for _ in range(100)).encode())
        os._exit(0)
    own = {stamp()[1] for _ in range(100)}
    os.waitpid(child, 0)
    theirs = {int(line) for line in os.read(reader, 65536).split()}
    os.close(reader)
    os.close(writer)
    assert len(theirs) == 100
    # Neither the counter nor the random bits below it are the parent's.
    assert not own & theirs
    assert not {one & 0xFFFF_FFFF for one in own} & {one & 0xFFFF_FFFF for one in theirs}


def test_a_record_that_is_stored_and_read_is_the_same() -> None:
    one = record(task_id="t", run_id="r", agent="a", details={"n": [1, "x"]}, duration_ms=1.5)
    row = stored(one)
    assert LogRecord.stored(UUID(bytes=row.id), one.time, row.level, *row[3:]) == one
    assert json.loads(json.dumps(one.as_dict()))["id"] == str(one.id)


class Colour(Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("message", "kept"),
    [
        ("nul\0", "nul␀"),
        ("lone \ud800", "lone \\ud800"),
        (5, "5"),
        ("", ""),
        ("日本語 🐍\n\t\"'\\", "日本語 🐍\n\t\"'\\"),
    ],
)
def test_any_message_can_be_stored(message: Any, kept: str) -> None:
    assert stored(record(message)).message == kept


def test_what_is_too_long_is_cut_with_a_mark() -> None:
    row = stored(record("é" * 5000, run_id="r" * 300, details={"text": "x" * 5000}))
    assert row.message.startswith("é" * 500)
    assert row.message.endswith("… [cut: 10000 bytes]")
    assert row.run_id is not None
    assert row.run_id.endswith("… [cut: 300 bytes]")
    assert row.details is not None
    assert row.details["cut"] is True
    assert row.details["bytes"] > 5000
    assert "xxx" in row.details["start"]


def test_details_that_are_not_json_become_so() -> None:
    some = uuid4()
    endless: dict[str, Any] = {}
    endless["itself"] = endless
    row = stored(
        record(
            details={
                "id": some,
                "colour": Colour.RED,
                "object": object,
                "set": {1},
                5: "number",
                "big": 2**80,
                "nul": "\0",
                "bytes": b"x",
            },
            duration_ms="12",
            run_id=some,
        )
    )
    assert row.details is not None
    assert row.details["id"] == row.run_id == str(some)
    assert row.details["colour"] == "red"
    assert row.details["set"] == [1]
    assert row.details["5"] == "number"
    assert row.details["big"] == str(2**80)
    assert row.details["nul"] == "␀"
    assert row.duration_ms == 12
    assert stored(record(details=endless)).details is not None


def test_what_cannot_say_what_it_is_does_not_stop_the_log() -> None:
    class Mute:
        def __str__(self) -> str:
            raise RuntimeError("no")

        __repr__ = __str__

    row = stored(record(Mute(), details={"mute": Mute()}, duration_ms=Mute()))
    assert "Mute" in row.message


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=8),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
    max_leaves=5,
)
patiently = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@patiently
@given(st.text(st.characters()), st.dictionaries(st.text(), _ANY), st.none() | st.text())
def test_no_record_of_ours_is_refused(message: str, details: Any, run: str | None) -> None:
    row = stored(record(message, details=details, run_id=run))
    assert "\0" not in row.message


GOOD = json.loads(encode(record(details={"a": 1}), LIMITS))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"message": None}, "message is of the wrong type"),
        ({"message": "\0"}, "NUL"),
        ({"details": {"a": {"\\\0": 1}}}, "NUL"),
        ({"level": "loud"}, "level is 'loud'"),
        ({"level": []}, "level"),
        ({"time": GOOD["time"] + 1_000_000}, "not a UUIDv7 of the record's time"),
        ({"time": "now"}, "time is not"),
        ({"id": str(uuid4())}, "not a UUID of version 7"),
        ({"id": GOOD["id"][:-1]}, ""),
        ({"id": "x"}, "non-hexadecimal"),
        ({"id": 5}, ""),
        ({"run_id": 5}, "run_id"),
        ({"run_id": "r" * 5000}, "run_id"),
        ({"details": []}, "details"),
        ({"duration_ms": "5"}, "duration_ms"),
        ({"surprise": 1}, "unknown fields: surprise"),
        ({"message": "x" * MAX_LINE}, "oversized"),
    ],
)
def test_poison_is_told_apart_with_its_reason(change: dict[str, Any], reason: str) -> None:
    found = decode(json.dumps({**GOOD, **change}).encode())
    assert isinstance(found, Dead)
    assert reason in found.reason
    assert decode(json.dumps({**GOOD, **change}).encode()) == found, "the same id each time"


@pytest.mark.parametrize("line", [b"", b"\xff", b"[1]", b"null", b'{"id":', b"{}"])
def test_what_is_no_record_is_told_apart(line: bytes) -> None:
    assert isinstance(decode(line), Dead)


@patiently
@given(
    st.binary() | st.text().map(str.encode) | _ANY.map(lambda x: repr(x).encode("utf-8", "replace"))
)
def test_no_line_breaks_the_writer(line: bytes) -> None:
    assert isinstance(decode(line), Dead)


def test_micros_and_moment_are_inverse() -> None:
    now = datetime.now(UTC)
    assert LogRecord(micros(now), 0, "info", "c", None, "m").time == now


class _Detached(dict[str, object]):
    def items(self) -> Any:
        raise RuntimeError("detached")


class _Mute:
    def __str__(self) -> str:
        raise RuntimeError("no words")

    def __float__(self) -> float:
        raise RuntimeError("no number")


@pytest.mark.parametrize(
    ("details", "stored"),
    [
        (_Detached(a=1), {"value": "{'a': 1}"}),
        ({"n": 10**5000}, {"n": f"{10**5000:#x}"}),
        ({"n": float("nan"), "i": [float("-inf"), None]}, {"n": "nan", "i": ["-inf", None]}),
        ({"a": {"b": _Mute()}, 3: {4}}, {"a": {"b": "<_Mute without text>"}, "3": [4]}),
        ({"text": "null"}, {"text": "null"}),
        ("no mapping", {"value": "no mapping"}),
        ({"s": "\ud800\0"}, {"s": "\\ud800␀"}),
    ],
)
def test_details_that_are_no_json_become_text(details: Any, stored: object) -> None:
    row = decode(encode(record("m", details=details), Limits(16_384, 65_536)))
    assert isinstance(row, RecordRow)
    assert row.details == stored


@pytest.mark.parametrize("duration", [10**400, float("nan"), _Mute(), "soon"])
def test_a_duration_that_is_no_number_is_none(duration: Any) -> None:
    row = decode(encode(record("m", duration_ms=duration), Limits(16_384, 65_536)))
    assert isinstance(row, RecordRow)
    assert row.duration_ms is None
