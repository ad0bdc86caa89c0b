"""Filters as people write them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from cloche.errors import LogQueryError
from cloche.logs.read.filter import LogFilter

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2h", NOW - timedelta(hours=2)),
        ("7d", NOW - timedelta(days=7)),
        ("2026-11-25", datetime(2026, 11, 25, tzinfo=UTC)),
        ("2026-11-25T08:30", datetime(2026, 11, 25, 8, 30, tzinfo=UTC)),
        ("2026-11-25T08:30+02:00", datetime(2026, 11, 25, 6, 30, tzinfo=UTC)),
        ("20261125", datetime(2026, 11, 25, tzinfo=UTC)),
    ],
)
def test_times_and_ages(text: str, moment: datetime) -> None:
    assert LogFilter.of(since=text).window(NOW)[0] == moment


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"since": "yesterday"}, "an age as 15m"),
        ({"level": "loud"}, "The filter level is wrong"),
        ({"lebel": "error"}, "Did you mean level?"),
    ],
)
def test_what_is_wrong_is_told(fields: dict[str, str], said: str) -> None:
    with pytest.raises(LogQueryError, match=r".") as caught:
        LogFilter.of(**fields)
    assert said in str(caught.value)


def test_an_address_holds_what_is_set_and_ages_stay_ages() -> None:
    asked = LogFilter.of(run="r 1", level="error", since="90m", until="", text="  ")
    assert asked.params() == {"run": "r 1", "level": "error", "since": "90m"}
    assert LogFilter.of(**asked.params()) == asked
