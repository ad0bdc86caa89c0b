"""The application that runs where none is named: ``celery -A cloche …`` finds it here."""

from __future__ import annotations

from cloche.app import create_app
from cloche.settings import load

app = create_app("cloche", load().settings)
