"""The task families that Cloche ships: the one list of them.

A family is a package in `cloche.tasks`: tasks named ``cloche.<family>.<name>`` with a queue, limits
and settings of their own. A further one is a line of :data:`FAMILIES` and its package.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

from pydantic import Field, model_validator

from cloche.settings.quantities import Rate, Seconds
from cloche.settings.section import Section


class _Limited(Protocol):
    @property
    def soft_time_limit(self) -> float | None: ...
    @property
    def time_limit(self) -> float | None: ...


_Limits = TypeVar("_Limits", bound=_Limited)


class FamilySettings(Section):
    """What the tasks named ``tasks.<family>.*`` share (``cloche.<family>.*`` those of Cloche's
    own families). Unset: as in ``[tasks]``."""

    queue: str | None = Field(None, min_length=1, description="Queue of this family")
    max_retries: int | None = Field(None, ge=0, description="Retries of a task that asks for one")
    retry_delay: Seconds | None = Field(None, description="Seconds before a retry")
    soft_time_limit: Seconds | None = Field(None, description="Seconds until the soft limit")
    time_limit: Seconds | None = Field(None, description="Seconds until a task is killed")
    rate_limit: Rate | None = Field(None, description="Most starts per worker, e.g. 10/m")

    @model_validator(mode="after")
    def _soft_below_hard(self) -> Self:
        return checked_limits(self)


def checked_limits(limits: _Limits) -> _Limits:
    """``limits``, if they fit each other. Raises ValueError."""
    soft, hard = limits.soft_time_limit, limits.time_limit
    if soft is not None and hard is not None and soft >= hard:
        raise ValueError(
            f"soft_time_limit ({soft:g} s) must be below time_limit ({hard:g} s), "
            "or the task is killed before it can clean up"
        )
    return limits


@dataclass(frozen=True, slots=True)
class Family:
    """``module`` has its tasks; a worker imports it. ``section`` is the table of its own settings,
    ``pages`` the table of the web application that it is asked through.

    ``needs``: families without which it does not do. ``keeps_rows``: it needs the database.
    ``own_worker``: in simple mode it has a worker of its own, so that a few slow tasks of it cannot
    keep short ones waiting.
    """

    name: str
    module: str
    defaults: FamilySettings
    section: str | None = None
    pages: str | None = None
    needs: tuple[str, ...] = ()
    keeps_rows: bool = False
    own_worker: bool = False


FAMILIES: tuple[Family, ...] = (
    Family(
        "download",
        "cloche.tasks.download",
        FamilySettings(
            queue="download_queue",
            max_retries=3,
            retry_delay=60,
            soft_time_limit=600,
            time_limit=900,
        ),
        section="download",
        pages="service",
        keeps_rows=True,
        own_worker=True,
    ),
    Family(
        "logs",
        "cloche.tasks.logs",
        FamilySettings(queue="logs"),
        section="logs",
        needs=("maintenance",),
        keeps_rows=True,
    ),
    Family(
        "maintenance",
        "cloche.tasks.maintenance",
        FamilySettings(queue="maintenance_queue", time_limit=3600),
    ),
)

#: The module of each, by name.
FAMILY_MODULES = {family.name: family.module for family in FAMILIES}


def default_families() -> dict[str, FamilySettings]:
    """The settings of each where nobody says otherwise."""
    return {family.name: family.defaults for family in FAMILIES}


def task_prefix(family: str) -> str:
    """How the names of its tasks begin: ``cloche.`` for one of Cloche's, else ``tasks.``."""
    return f"{'cloche' if family in FAMILY_MODULES else 'tasks'}.{family}."
