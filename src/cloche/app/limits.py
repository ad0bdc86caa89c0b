"""Retries and time limits of task families, applied to the tasks themselves.

``task_max_retries`` and ``task_default_retry_delay`` are not Celery settings, though they are
copied everywhere; the values live on the task. Celery's ``task_annotations`` is the place to
set them: an entry may be any object with ``annotate(task)`` (celery.app.annotations).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from celery import Celery, Task
from celery.app.annotations import prepare
from celery.utils.functional import firstmethod

from cloche.settings.families import FamilySettings, task_prefix
from cloche.settings.model import Settings

_ABSENT = object()

_first_answer = firstmethod("annotate")
_first_answer_for_any = firstmethod("annotate_any")


def family_limits(settings: Settings, annotations: Any, *, guest: bool = False) -> FamilyLimits:
    """Limits from ``settings`` around what the application put in ``task_annotations``.

    ``guest``: in a project's own application only limits count that somebody set.
    """
    return FamilyLimits(settings, tuple(prepare(annotations)), guest)


@dataclass(frozen=True)
class FamilyLimits:
    """Gives each task its family's limits where its author set none.

    Celery takes the *first* entry of ``task_annotations`` that answers (celery.utils.
    functional.firstmethod), so this one carries the application's ``others`` and lets
    them win.
    """

    settings: Settings
    others: tuple[Any, ...] = ()
    guest: bool = False

    def annotate(self, task: type[Task]) -> dict[str, Any] | None:
        """Attributes for ``task`` (a task class): only what it does not define itself."""
        theirs = _first_answer(self.others, task) or {}
        if task.name.startswith("celery."):
            return theirs or None
        ours = self._limits(family_of(task.name))
        return {**{key: value for key, value in ours if not _is_explicit(task, key)}, **theirs}

    def annotate_any(self) -> dict[str, Any] | None:
        """The application's own annotation of ``*``; Celery applies it last."""
        answer: dict[str, Any] | None = _first_answer_for_any(self.others)
        return answer

    def _limits(self, family_name: str | None) -> Iterator[tuple[str, Any]]:
        tasks = self.settings.tasks
        family = self.settings.families.get(family_name or "", FamilySettings())
        for key, names in (("max_retries", "max_retries"), ("default_retry_delay", "retry_delay")):
            value = getattr(family, names)
            if value is None and (not self.guest or names in tasks.model_fields_set):
                value = getattr(tasks, names)
            if value is not None:
                yield key, value
        for key in ("soft_time_limit", "time_limit", "rate_limit"):
            value = getattr(family, key)
            if value is not None:
                yield key, value

    def __repr__(self) -> str:
        return f"FamilyLimits({', '.join(sorted(self.settings.families))})"


def family_of(task_name: str) -> str | None:
    """The family in ``tasks.<family>.<name>``, or None; Cloche's own: ``cloche.<family>.<name>``.

    A project's package ``tasks`` may well have a module ``download``, which is its own.
    """
    family, _, name = task_name.partition(".")[2].partition(".")
    return family if name and task_name.startswith(task_prefix(family)) else None


def apply_to_bound(app: Celery, limits: FamilyLimits) -> tuple[str, ...]:
    """Annotate the tasks Celery has bound already (it asks annotations only once).

    Returns their names.
    """
    # app.tasks would bind the pending ones too, before the application is complete.
    bound = [task for task in app._tasks.values() if task.__bound__]
    for task in bound:
        for key, value in (limits.annotate(type(task)) or {}).items():
            setattr(type(task), key, value)
    return tuple(sorted(task.name for task in bound if not task.name.startswith("celery.")))


def _is_explicit(task: type[Task], key: str) -> bool:
    """Whether the author (or a base class of theirs) set ``key``.

    Celery's own defaults sit on ``celery.app.task.Task``. Binding writes settings such as the
    time limits into the class too, but only where they were None, hence the second test.
    Elsewhere None is a wish like any other: ``max_retries=None`` sets no limit.
    """
    copied = key in dict(Task.from_config)
    for cls in task.__mro__:
        if cls is Task:
            return False
        found = cls.__dict__.get(key, _ABSENT)
        if found is not _ABSENT and not (copied and found in (None, _setting(task, key))):
            return True
    return False


def _setting(task: type[Task], key: str) -> Any:
    """What binding copies into the class when its author said nothing (Task.from_config)."""
    return task._app.conf.get(dict(Task.from_config)[key]) if task._app is not None else None
