"""Schedules as settings: what runs, and when."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from celery.schedules import ParseException, crontab
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from cloche.settings.quantities import Expectation, Seconds
from cloche.settings.section import Section

#: What to do about runs that nobody sent while no scheduler ran.
CatchUp = Literal["once", "skip"]


def _cron(text: str) -> str:
    """Refuse what is no cron line. The five fields are separated by one space afterwards."""
    fields = text.split()
    if len(fields) != 5:
        raise ValueError(
            f"a cron line has 5 fields (minute hour day month weekday), not {len(fields)}: "
            "write */5 * * * *"
        )
    line = " ".join(fields)
    try:
        crontab.from_string(line)
    except (ValueError, ParseException) as error:
        raise ValueError(f"this is no cron line: {error}") from None
    return line


def _table(value: object) -> object:
    """A variable carries a table as a JSON object."""
    return json.loads(value) if isinstance(value, str) else value


CronLine = Annotated[str, AfterValidator(_cron), Expectation('cron line, e.g. "*/5 * * * *"')]
Table = Annotated[Mapping[str, Any], BeforeValidator(_table), Expectation("table")]


class ScheduleSettings(Section):
    """One schedule: ``task`` is sent ``every`` so often, or when ``cron`` says.

    Of a name that the application's own ``beat_schedule`` has too, this one counts.
    """

    task: str | None = Field(
        None, min_length=1, description="Name of the task to send", examples=["tasks.mail.digest"]
    )
    every: Seconds | None = Field(
        None, gt=0, description="Seconds between two runs", examples=["1h"]
    )
    cron: CronLine | None = Field(
        None, description="Minute, hour, day, month and weekday of its runs, in timezone"
    )
    args: tuple[Any, ...] = Field((), description="Positional arguments")
    kwargs: Table = Field(default_factory=dict, description="Keyword arguments")
    queue: str | None = Field(None, min_length=1, description="Queue; unset: where it is routed")
    expires: Seconds | None = Field(
        None, gt=0, description="Seconds after which a run nobody has begun is dropped"
    )
    enabled: bool = Field(
        True, description="false: not sent, also if the application has a schedule of this name"
    )
    catch_up: CatchUp | None = Field(
        None, description="Missed runs: once or skip; unset: as beat.catch_up says"
    )

    @model_validator(mode="after")
    def _says_what_and_when(self) -> Self:
        if not self.enabled:
            return self
        if self.task is None:
            raise ValueError("a schedule names its task, or says enabled = false")
        if (self.every is None) == (self.cron is None):
            raise ValueError('a schedule says either every = "5m" or cron = "*/5 * * * *"')
        return self
