"""The database of downloads and history: SQLite in the run directory, or PostgreSQL."""

from cloche.database.engine import Database

__all__ = ["Database"]
