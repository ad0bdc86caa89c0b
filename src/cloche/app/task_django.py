"""The base class of tasks in applications made by :func:`cloche.create_app` in a Django project."""

from __future__ import annotations

from celery.contrib.django.task import DjangoTask as CelerysDjangoTask

from cloche.app.task import Task


class DjangoTask(Task, CelerysDjangoTask):
    """Ours, with Celery's ``delay_on_commit`` and ``apply_async_on_commit``."""

    abstract = True
