"""Which queue a task goes to: patterns, the specific before the general."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from celery import Celery
from kombu import Queue

from cloche.settings.families import task_prefix
from cloche.settings.model import Route, Settings

_WILDCARD = re.compile(r"[*?\[]")

#: One entry of Celery's ``task_routes``: a name or compiled pattern, and where it leads.
CeleryRoute = tuple[str | re.Pattern[str], dict[str, str]]


def specificity(pattern: str) -> tuple[bool, int, int]:
    """Sort key: exact names first, then the longest literal start, then most literal text."""
    start = _WILDCARD.split(pattern, maxsplit=1)[0]
    literal = _WILDCARD.sub("", pattern)
    return (start != pattern, -len(start), -len(literal))


def all_routes(settings: Settings) -> tuple[Route, ...]:
    """The configured routes and the families' own, the specific before the general.

    Among equally specific patterns the configured one comes first, in the order written.
    """
    families = (
        Route(pattern=f"{task_prefix(name)}*", queue=family.queue)
        for name, family in settings.families.items()
        if family.queue is not None
    )
    routes = (*settings.routes, *families)
    return tuple(sorted(routes, key=lambda route: specificity(route.pattern)))


def celery_routes(routes: Iterable[Route]) -> list[CeleryRoute]:
    """Routes as Celery's MapRoute takes them.

    Celery 5.7 reads a string as a pattern only if it has a ``*``, so others are compiled.
    """
    return [(_pattern(route.pattern), {"queue": route.queue}) for route in routes]


def _pattern(text: str) -> str | re.Pattern[str]:
    if _WILDCARD.search(text) and "*" not in text:
        return re.compile(fnmatch.translate(text))
    return text


def declared_names(app: Celery) -> tuple[str, ...]:
    """Every queue the configuration names, declared or routed to, the default queue first.

    The default queue is not one of them where ``task_queues`` leaves it out: as Celery's, a worker
    that was not told its queues consumes those.
    """
    names = dict.fromkeys(() if app.conf.task_queues else [app.conf.task_default_queue])
    names.update(dict.fromkeys(_queue_names(app.conf.task_queues)))
    names.update(dict.fromkeys(_routed(app.conf.task_routes)))
    return tuple(names)


def consumed_queues(app: Celery) -> tuple[str, ...]:
    """What a worker without ``-Q`` consumes: the names above and those its tasks ask for.

    Binds all pending tasks, so call it when the task modules are imported.
    """
    names = dict.fromkeys(declared_names(app))
    asked = (getattr(task, "queue", None) for task in app.tasks.values())
    names.update(dict.fromkeys(name for name in asked if isinstance(name, str)))
    return tuple(names)


def _queue_names(queues: Any) -> Iterator[str]:
    """Names in ``task_queues``, which may be a dict, or a list of Queue objects or names."""
    for queue in queues or ():
        yield queue.name if isinstance(queue, Queue) else str(queue)


def _routed(routes: Any) -> Iterator[str]:
    """Queues named in ``task_routes``; router functions cannot be asked."""
    if isinstance(routes, Mapping):
        targets: Iterable[Any] = routes.values()
    elif isinstance(routes, list | tuple):
        for entry in routes:
            if isinstance(entry, tuple) and len(entry) == 2:
                yield from _routed(dict([entry]))
            else:
                yield from _routed(entry)
        return
    else:
        return
    for target in targets:
        queue = target.get("queue") if isinstance(target, Mapping) else target
        if isinstance(queue, Queue):
            yield queue.name
        elif isinstance(queue, str):
            yield queue


def unmatched_routes(app: Celery, routes: Iterable[Route]) -> tuple[Route, ...]:
    """Routes that no registered task matches: usually a misspelt name."""
    names = [name for name in app.tasks if not name.startswith("celery.")]
    return tuple(
        route
        for route in routes
        if not any(fnmatch.fnmatchcase(name, route.pattern) for name in names)
    )
