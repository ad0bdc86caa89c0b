"""What the settings themselves accept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.transport import TRANSPORT_ALIASES
from pydantic import TypeAdapter, ValidationError

from cloche.settings import Settings
from cloche.settings.keys import catalogue
from cloche.settings.quantities import Age, BrokerUrl, Bytes, Seconds, duration

_bytes = TypeAdapter[int](Bytes)
_seconds = TypeAdapter[float](Seconds)


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("200M", 200 * 2**20), ("1.5 GiB", 3 * 2**29), ("1kb", 1024), ("7B", 7)],
)
def test_a_size_is_read_as_people_write_it(text: str, size: int) -> None:
    assert _bytes.validate_python(text) == size


@pytest.mark.parametrize("text", ["", "b", "M", "inf", "nan", "-1M", "1X", "1e400"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        _bytes.validate_python(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("1.5h", 5400), ("250ms", 0.25), ("2 d", 172800)]
)
def test_a_duration_is_read_as_people_write_it(text: str, seconds: float) -> None:
    assert _seconds.validate_python(text) == seconds
    assert TypeAdapter(Age).validate_python(text).total_seconds() == seconds


@pytest.mark.parametrize("text", ["1e999", "inf", "-1", "h", "1x", "99999999999999w"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Age).validate_python(text)


@given(st.integers(0, 10**9).map(lambda n: n / 2) | st.integers(0, 10**9))
def test_a_duration_that_was_written_reads_back_the_same(seconds: float) -> None:
    assert _seconds.validate_python(duration(seconds)) == seconds


@pytest.mark.parametrize("scheme", sorted({alias.lower() for alias in TRANSPORT_ALIASES}))
def test_every_broker_kombu_knows_is_accepted(scheme: str) -> None:
    TypeAdapter(BrokerUrl).validate_python(f"{scheme}://h")


def test_every_setting_says_what_it_means() -> None:
    assert [key.dotted for key in catalogue() if not key.field.description] == []


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Settings().app = "other"  # type: ignore[misc]
