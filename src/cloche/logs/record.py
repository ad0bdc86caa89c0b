"""What one line of the execution log is."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Self, cast
from uuid import UUID

Level = Literal["debug", "info", "warning", "error", "critical"]

#: Level names and the numbers they are stored as, those of `logging`.
LEVELS: Mapping[str, int] = MappingProxyType(
    {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
)
LEVEL_NAMES: Mapping[int, Level] = MappingProxyType(
    {number: cast(Level, name) for name, number in LEVELS.items()}
)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
#: RFC 9562, 5.7: version 7 in bits 48 to 51, variant 10 in bits 64 and 65.
_VERSION = 0x7 << 76
_VARIANT = 0b10 << 62
_LOW_62 = (1 << 62) - 1
_LOW_12 = (1 << 12) - 1


class LogRecord(NamedTuple):
    """One line of the execution log. Frozen; ``id`` and ``time`` come from its first two fields.

    ``micros`` is its time in µs since 1970, ``serial`` the 74 bits of its id that are not time.
    ``duration_ms`` is in milliseconds; ``details`` is a JSON object.

    A tuple, because making one is a third of what a class with slots costs.
    """

    micros: int
    serial: int
    level: Level
    category: str
    step: str | None
    message: str
    task_id: str | None = None
    run_id: str | None = None
    concept_id: str | None = None
    agent: str | None = None
    details: Mapping[str, Any] | None = None
    duration_ms: float | None = None

    @property
    def id(self) -> UUID:
        """UUID version 7: ordered by time, in a process strictly."""
        return UUID(int=self._number)

    @property
    def id_text(self) -> str:
        """``str(id)``, four times as fast."""
        digits = f"{self._number:032x}"
        return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"

    @property
    def _number(self) -> int:
        high, low = self.serial >> 62 << 64, self.serial & _LOW_62
        return self.micros // 1000 << 80 | _VERSION | high | _VARIANT | low

    @property
    def time(self) -> datetime:
        """When it was logged, UTC; its milliseconds are those of ``id``."""
        return moment(self.micros)

    @classmethod
    def stored(cls, id: UUID, time: datetime, level: int, *others: Any) -> Self:
        """A record from a row of ``log_records``, columns in the order of the table."""
        serial = (id.int >> 64 & _LOW_12) << 62 | id.int & _LOW_62
        return cls(micros(time), serial, LEVEL_NAMES[level], *others)

    def as_dict(self) -> dict[str, Any]:
        """All fields as plain JSON types; ``time`` in ISO 8601."""
        return {"id": str(self.id), "time": self.time.isoformat(), **self._asdict_but_id()}

    def _asdict_but_id(self) -> dict[str, Any]:
        fields = self._asdict()
        del fields["micros"], fields["serial"]
        return fields


def moment(micros: int) -> datetime:
    """µs since 1970 as a UTC datetime."""
    return _EPOCH + timedelta(microseconds=micros)


def micros(moment: datetime) -> int:
    """A datetime with a time zone as µs since 1970."""
    return (moment - _EPOCH) // _MICROSECOND


def first_id(moment: datetime) -> UUID:
    """Not greater than any id made at ``moment`` or later: a range of time is a range of ids."""
    return UUID(int=micros(moment) // 1000 << 80)
