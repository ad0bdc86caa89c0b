"""A package with its settings in a module of their own, as Celery's tutorial has it."""

from celery import Celery

celery = Celery("shop", include=["shop.tasks"])
celery.config_from_object("shop.celeryconfig")
