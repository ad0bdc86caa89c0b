"""The database, brought up to date before anybody uses it."""

from __future__ import annotations

from cloche.database import Database
from cloche.settings import Settings


def migrate(settings: Settings) -> None:
    """Apply what is missing. Raises DatabaseError."""
    database = Database(settings)
    try:
        database.migrate()
    finally:
        database.close()
