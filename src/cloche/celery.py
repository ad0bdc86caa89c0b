"""The application that runs where none is named: ``celery -A cloche …`` finds it here."""

from __future__ import annotations

from cloche.app import create_app

app = create_app("cloche")
