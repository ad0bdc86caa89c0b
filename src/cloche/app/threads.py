"""The threads pool of ``cloche worker``: it starts itself anew as asked."""

from __future__ import annotations

from cloche.app import thread
from cloche.app.recycling import Recycled


class TaskPool(Recycled, thread.TaskPool):
    """Ours (:mod:`cloche.app.thread`), recycled."""
