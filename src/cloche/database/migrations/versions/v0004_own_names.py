"""Every table is called ``cloche_…``: a project's own may be called ``downloads``, too.

Those of older versions are renamed before any migration runs (`cloche.database.schema`), so
that all of these know one name for each. What cannot be renamed is the text index of SQLite,
which names the rows it indexes.
"""

from alembic import op

revision = "0004"
down_revision = "0003"

#: No trigger fills the index: by batch it costs a fifth of an insertion, row by row four times
#: as much. FTS5 reads what it indexed from its content: when it is rebuilt, and to check itself.
_SQLITE = (
    "CREATE VIEW cloche_log_records_words AS "
    "SELECT seq, cloche_words(message) AS message FROM cloche_log_records",
    "CREATE VIRTUAL TABLE cloche_log_records_text USING "
    "fts5(message, content='cloche_log_records_words', content_rowid='seq')",
    "INSERT INTO cloche_log_records_text (cloche_log_records_text) VALUES ('rebuild')",
    "CREATE TRIGGER cloche_log_records_deleted BEFORE DELETE ON cloche_log_records BEGIN "
    "INSERT INTO cloche_log_records_text (cloche_log_records_text, rowid, message) "
    "VALUES ('delete', OLD.seq, cloche_words(OLD.message)); END",
)


def upgrade() -> None:
    """Make the text index of SQLite."""
    connection = op.get_bind()
    if connection.dialect.name == "sqlite":
        for statement in _SQLITE:
            connection.exec_driver_sql(statement)


def downgrade() -> None:
    """There is none: the names of version 0003 may be a project's by now."""
    raise NotImplementedError
