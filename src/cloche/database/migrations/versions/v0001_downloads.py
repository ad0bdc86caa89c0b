"""The downloads: one row per request."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the table that ``cloche.tasks.download.repository`` describes."""
    op.create_table(
        "cloche_downloads",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("url_key", sa.String(64), nullable=False),
        sa.Column("checksum", sa.Text),
        sa.Column("max_size", sa.BigInteger, nullable=False),
        sa.Column("wanted_name", sa.Text),
        sa.Column("refresh", sa.Boolean, nullable=False),
        sa.Column("backend", sa.String(16), nullable=False),
        sa.Column("active_key", sa.String(64), unique=True),
        sa.Column("task_id", sa.String(36), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("cancel_requested", sa.Boolean, nullable=False),
        sa.Column("received", sa.BigInteger, nullable=False),
        sa.Column("total", sa.BigInteger),
        sa.Column("rate", sa.Double, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("restarts", sa.Integer, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("sha256", sa.String(64)),
        sa.Column("size", sa.BigInteger),
        sa.Column("filename", sa.Text),
        sa.Column("content_type", sa.Text),
        sa.Column("etag", sa.Text),
        sa.Column("last_modified", sa.Text),
        sa.Column("cached", sa.Boolean, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("started", sa.Double),
        sa.Column("updated", sa.Double, nullable=False),
        sa.Column("checked", sa.Double),
        sa.Column("finished", sa.Double),
    )
    op.create_index("cloche_downloads_created", "cloche_downloads", ["created", "id"])
    op.create_index("cloche_downloads_url", "cloche_downloads", ["url_key", "checked"])
    op.create_index("cloche_downloads_sha256", "cloche_downloads", ["sha256"])


def downgrade() -> None:
    op.drop_table("cloche_downloads")
