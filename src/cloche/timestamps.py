"""Times as numbers, and as the ids (UUID version 7, RFC 9562) that begin with them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def moment(micros: int) -> datetime:
    """µs since 1970 as a UTC datetime."""
    return _EPOCH + timedelta(microseconds=micros)


def micros(moment: datetime) -> int:
    """A datetime with a time zone as µs since 1970."""
    return (moment - _EPOCH) // _MICROSECOND


def first_id(moment: datetime) -> UUID:
    """Not greater than any id made at ``moment`` or later: a range of time is a range of ids.

    Ids begin in 1970."""
    return UUID(int=max(0, micros(moment)) // 1000 << 80)
