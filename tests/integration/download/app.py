"""The application of the worker under test: ``CLOCHE_TEST`` holds its set-up as JSON."""

from __future__ import annotations

import json
import os
from typing import Any

from celery import Celery

from cloche.settings import Settings
from cloche.settings.of_app import state_of
from cloche.tasks.download.task import FETCH


def make(setup: dict[str, Any]) -> Celery:
    """``broker`` URL, ``settings`` of Cloche, ``task`` attributes of the fetch task."""
    app = Celery("download-test", broker=setup["broker"], backend=setup["broker"])
    state_of(app).settings = Settings.model_validate(setup["settings"])
    app.conf.update(
        broker_transport_options={"visibility_timeout": setup.get("visibility_timeout", 3600)},
        broker_connection_retry_on_startup=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=setup.get("remote_control", True),
        task_annotations={FETCH: {"default_retry_delay": 1, "max_retries": 2} | setup["task"]},
    )
    return app


if "CLOCHE_TEST" in os.environ:
    app = make(json.loads(os.environ["CLOCHE_TEST"]))
