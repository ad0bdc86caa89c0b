"""Whether the database answers, asked with its bare driver.

Neither a pool nor a migration stands between: a check must never create what it asks for.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from cloche.errors import ExtraMissingError
from cloche.settings import Settings, mask_url

#: Seconds to wait for a connection, or for SQLite's lock.
_TIMEOUT = 3


def check_database(settings: Settings) -> str:
    """One query; says where the database is. Raises the driver's errors."""
    url = settings.database.url.get_secret_value() if settings.database.url else None
    if url is None:
        return _sqlite(settings.run_dir.absolute() / "cloche.db")
    if url.startswith("sqlite"):
        return _sqlite(Path(url.partition(":///")[2].partition("?")[0]).absolute())
    return _postgresql(url)


def _sqlite(path: Path) -> str:
    if not path.exists():
        return f"{path} (made at first use)"
    # Read-only: a check must never create or migrate.
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=_TIMEOUT)) as opened:
        opened.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return str(path)


def _postgresql(url: str) -> str:
    try:
        import psycopg  # noqa: PLC0415 (an extra, and 60 ms of start-up where it is not used)
    except ImportError:
        raise ExtraMissingError(
            "The driver of PostgreSQL is not installed.", fix="pip install 'cloche[postgres]'"
        ) from None
    plain = "postgresql" + url[url.index("://") :]
    with psycopg.connect(plain, connect_timeout=_TIMEOUT) as opened:
        opened.execute("SELECT 1")
    return mask_url(plain)
