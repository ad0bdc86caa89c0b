"""The table of downloads, as migration 0001 made it (a test compares them)."""

from __future__ import annotations

import hashlib

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData()

downloads = Table(
    "cloche_downloads",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("url", Text, nullable=False),
    # A hash, because PostgreSQL cannot index a text longer than 2.7 kB.
    Column("url_key", String(64), nullable=False),
    Column("checksum", Text),
    Column("max_size", BigInteger, nullable=False),
    Column("wanted_name", Text),
    Column("refresh", Boolean, nullable=False),
    Column("backend", String(16), nullable=False),
    # Equal for equal requests while they are active, then NULL: two requests for the same
    # file at the same moment cannot both be inserted.
    Column("active_key", String(64), unique=True),
    Column("task_id", String(36), nullable=False),
    Column("state", String(16), nullable=False),
    Column("cancel_requested", Boolean, nullable=False),
    Column("received", BigInteger, nullable=False),
    Column("total", BigInteger),
    Column("rate", Double, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("restarts", Integer, nullable=False),
    Column("error", Text),
    Column("sha256", String(64)),
    Column("size", BigInteger),
    Column("filename", Text),
    Column("content_type", Text),
    Column("etag", Text),
    Column("last_modified", Text),
    Column("cached", Boolean, nullable=False),
    Column("created", Double, nullable=False),
    Column("started", Double),
    Column("updated", Double, nullable=False),
    # When the server last confirmed this content: what freshness is counted from.
    Column("checked", Double),
    Column("finished", Double),
    Index("cloche_downloads_created", "created", "id"),
    Index("cloche_downloads_url", "url_key", "checked"),
    Index("cloche_downloads_sha256", "sha256"),
)


def key(*parts: object) -> str:
    """A fixed-length name for these values together."""
    return hashlib.sha256("\n".join(map(repr, parts)).encode()).hexdigest()
