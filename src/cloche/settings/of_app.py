"""The settings of an application."""

from __future__ import annotations

from celery import Celery

from cloche.settings.loading import load
from cloche.settings.model import Settings


def settings_of(app: Celery) -> Settings:
    """What `create_app` or `harden` left on the application.

    On a bare application they are loaded, once, as they would be for the command line.
    """
    found = getattr(app, "cloche_settings", None)
    if not isinstance(found, Settings):
        found = app.cloche_settings = load().settings
    return found
