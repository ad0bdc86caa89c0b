"""The pool tests' tasks in a worker that receives plain messages as ``cloche worker`` does."""

from __future__ import annotations

from cloche.worker.events import collect_events
from cloche.worker.receiver import receive_plainly
from tests.integration.aio_pool.jobs import app

__all__ = ["app"]

collect_events(app)
receive_plainly(app)
