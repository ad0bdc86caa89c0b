"""The solo pool of ``cloche worker``: Celery's, started anew after so many tasks."""

from __future__ import annotations

from typing import Any

from celery.concurrency import solo
from celery.concurrency.base import apply_target

from cloche.worker.recycling import Recycled


class Solo(solo.TaskPool):
    """Celery's, with a method where that has an attribute."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        del self.on_apply

    def on_apply(self, *args: Any, **kwargs: Any) -> Any:
        return apply_target(*args, **kwargs)


class SoloPool(Recycled, Solo):
    """The solo pool of ``cloche worker``."""
