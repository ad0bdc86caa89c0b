"""Which records are wanted: one model for Python, for addresses and for the command line."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from cloche.errors import LogQueryError
from cloche.logs.record import Level
from cloche.plain import storable
from cloche.settings.quantities import age_of, duration


def _moment(value: object) -> object:
    """``2h`` and ``7d`` are ages; anything else is a time, of UTC if it does not say."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    age = age_of(text)
    try:
        found: datetime | timedelta = (
            datetime.fromisoformat(text) if age is None else timedelta(seconds=age)
        )
        return found if isinstance(found, timedelta) else _utc(found)
    except (ValueError, OverflowError):
        raise ValueError(
            "this is no time: write 2026-11-25T08:00, or an age as 15m, 2h, 7d"
        ) from None


#: A time, or an age counted back from the moment of the query.
Moment = Annotated[datetime | timedelta, BeforeValidator(_moment)]


def _filled(value: object) -> object:
    """Empty fields of a form are fields nobody filled in."""
    if not isinstance(value, str):
        return value
    if storable(value) != value:
        raise ValueError("it has a character that no record can have (NUL, or half of one)")
    return value.strip() or None


Filled = BeforeValidator(_filled)
Word = Annotated[str | None, Filled]


class LogFilter(BaseModel):
    """What a record must be to be wanted; unset: anything."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    run: Word = Field(None, description="Run id")
    task: Word = Field(None, description="Task id")
    concept: Word = Field(None, description="Concept id")
    level: Annotated[Level | None, Filled] = Field(None, description="At least this level")
    category: Word = Field(None, description="Category")
    step: Word = Field(None, description="Step, with the steps below it: write finds write/draft")
    agent: Word = Field(None, description="Agent")
    since: Annotated[Moment | None, Filled] = Field(
        None, description="From this time (ISO 8601, UTC) or age (15m, 2h, 7d) on"
    )
    until: Annotated[Moment | None, Filled] = Field(None, description="Before this time or age")
    text: Word = Field(None, description="Part of the message, in any case")

    def window(self, now: datetime | None = None) -> tuple[datetime | None, datetime | None]:
        """``since`` and ``until`` as times in UTC."""
        now = now or datetime.now(UTC)
        return _at(self.since, now), _at(self.until, now)

    def params(self) -> dict[str, str]:
        """The filter as parameters of an address, only what is set; ages stay ages."""
        given = {name: getattr(self, name) for name in LogFilter.model_fields}
        return {name: _written(value) for name, value in given.items() if value is not None}

    @classmethod
    def of(cls, **fields: Any) -> LogFilter:
        """The filter of these fields. Raises LogQueryError that says which one is wrong."""
        try:
            return cls(**fields)
        except ValidationError as error:
            raise refused(error) from None


#: No filter at all.
EVERYTHING = LogFilter()


def refused(error: ValidationError, model: type[BaseModel] = LogFilter) -> LogQueryError:
    """What pydantic complains of, in our words."""
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        near = get_close_matches(name, model.model_fields, n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        known = ", ".join(model.model_fields)
        return LogQueryError(f"There is no filter {name!r}", fix=f"{hint}There are {known}.")
    why = str(first["msg"]).removeprefix("Value error, ")
    return LogQueryError(f"The filter {name} is wrong", why=why)


def _at(moment: datetime | timedelta | None, now: datetime) -> datetime | None:
    if isinstance(moment, timedelta):
        try:
            return now - moment
        except OverflowError:  # before the calendar began
            return datetime.min.replace(tzinfo=UTC)
    return moment and _utc(moment)


def _utc(moment: datetime) -> datetime:
    """Raises OverflowError for a time that has no year in UTC."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _written(value: object) -> str:
    if isinstance(value, timedelta):
        return duration(value.total_seconds())
    return value.isoformat() if isinstance(value, datetime) else str(value)
