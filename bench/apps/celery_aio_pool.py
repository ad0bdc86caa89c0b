"""Stock Celery with celery-aio-pool, whose documentation asks for this patch of the tracer."""

from __future__ import annotations

import celery_aio_pool

from bench.apps.celery import app, publish, publish_many, publish_sleeps

__all__ = ["app", "publish", "publish_many", "publish_sleeps"]

if not celery_aio_pool.patch_celery_tracer():
    raise RuntimeError("celery-aio-pool could not put its tracer in Celery's place")
