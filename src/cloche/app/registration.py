"""Whether the tasks are there that somebody counts on, and are named as they should be."""

from __future__ import annotations

from collections.abc import Iterator

from celery import Celery

from cloche.app.limits import family_of
from cloche.app.loading import broken_task_module
from cloche.app.routing import all_routes, unmatched_routes
from cloche.app.schedules import unknown_tasks
from cloche.errors import ClocheError
from cloche.settings.of_app import is_own, settings_of


def import_tasks(app: Celery) -> None:
    """Import every task module. Raises AppError with the traceback of one that fails."""
    try:
        app.loader.import_default_modules()
        app.finalize()
    except ClocheError:
        raise
    except Exception as error:
        raise broken_task_module(error) from error


def registration_problems(app: Celery) -> Iterator[str]:
    """Sentences about tasks: expected ones that are missing, routes and schedules that name
    what nobody registers, names that no family can be told from."""
    settings = settings_of(app)
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
    # A guest names its tasks as it likes, unless it has asked for limits of a family.
    asked = any(family_of(name) in settings.families for name in app.tasks if _is_own(name))
    if odd and (is_own(app) or asked):
        yield (
            f"names not of the form tasks.<family>.<name>: {', '.join(odd[:5])}"
            f"{', …' if len(odd) > 5 else ''}: no family's limits and routes apply to them"
        )


def _is_own(name: str) -> bool:
    """Whether the project may have chosen the name: Celery's and ours of families aside."""
    return not name.startswith(("celery.", "cloche."))
