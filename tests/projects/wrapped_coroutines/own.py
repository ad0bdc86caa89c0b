"""A project's own way to write tasks with async def: to Celery they are plain functions."""

import asyncio
import functools


def async_task(app, **options):
    def decorate(function):
        @functools.wraps(function)
        def run(*args, **kwargs):
            return asyncio.run(function(*args, **kwargs))

        return app.task(**options)(run)

    return decorate
