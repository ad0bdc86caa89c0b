"""Whether the tasks are there that somebody counts on, and are named as they should be."""

from __future__ import annotations

import traceback
from collections.abc import Iterator

from celery import Celery

from cloche.app.limits import family_of
from cloche.app.routing import all_routes, unmatched_routes
from cloche.app.schedules import unknown_tasks
from cloche.errors import AppError


def import_tasks(app: Celery) -> None:
    """Import every task module. Raises AppError with the traceback of one that fails."""
    try:
        app.loader.import_default_modules()
        app.finalize()
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if "importlib" not in frame.filename]
        where = f"{own[-1].filename}:{own[-1].lineno}: " if own else ""
        text = "".join(traceback.format_exception(error))
        raise AppError(
            f"a task module cannot be imported: {where}{type(error).__name__}: {error}",
            why="\n" + text.rstrip(),
            fix="correct that line, or take the module out of imports and include",
        ) from error


def registration_problems(app: Celery) -> Iterator[str]:
    """Sentences about tasks: expected ones that are missing, routes and schedules that name
    what nobody registers, names that no family can be told from."""
    settings = app.cloche_settings
    for name in settings.expect_tasks:
        if name not in app.tasks:
            yield f"the task {name} of expect_tasks is not registered: its module is not imported"
    for route in unmatched_routes(app, all_routes(settings)):
        yield (
            f"route {route.pattern!r} -> {route.queue!r} matches no registered task: "
            "a misspelt name, or a module that is not imported"
        )
    for name, task in unknown_tasks(app).items():
        yield f"schedule {name} names the task {task}, which is not registered"
    odd = sorted(name for name in app.tasks if family_of(name) is None and _is_own(name))
    if odd and any(family_of(name) for name in app.tasks if _is_own(name)):
        yield (
            f"names not of the form tasks.<family>.<name>: {', '.join(odd[:5])}"
            f"{', …' if len(odd) > 5 else ''}: no family's limits and routes apply to them"
        )


def _is_own(name: str) -> bool:
    """Whether the project may have chosen the name: Celery's and ours of families aside."""
    return not name.startswith(("celery.", "cloche.", "tasks.download.", "tasks.logs."))
