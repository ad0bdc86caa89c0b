"""How a task finds the settings of the application it runs in."""

from __future__ import annotations

from celery import Celery

from cloche.settings import Settings


def settings_of(app: Celery) -> Settings:
    """What `create_app` or `harden` left on the application; the defaults on a bare one."""
    found = getattr(app, "cloche_settings", None)
    return found if isinstance(found, Settings) else Settings()
