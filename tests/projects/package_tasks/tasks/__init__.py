"""A package whose names are those of Cloche's families, beside a directory named alembic."""

import os

from celery import Celery

app = Celery(
    "tasks",
    broker=os.environ["PROJECT_BROKER"],
    backend=os.environ["PROJECT_BROKER"],
    include=["tasks.download", "tasks.logs"],
)
