"""The execution log: its records, and what could not be stored as one."""

from alembic import op

revision = "0002"
down_revision = "0001"

#: Daily partitions are ``log_records_YYYYMMDD``; the default one is a net for days without one.
_POSTGRESQL = """
CREATE TABLE log_records (
  id uuid NOT NULL PRIMARY KEY, time timestamptz NOT NULL, level smallint NOT NULL,
  category text NOT NULL, step text, message text NOT NULL, task_id text, run_id text,
  concept_id text, agent text, details jsonb, duration_ms double precision
) PARTITION BY RANGE (id);
CREATE INDEX log_records_run ON log_records (run_id, id) WHERE run_id IS NOT NULL;
CREATE INDEX log_records_task ON log_records (task_id, id) WHERE task_id IS NOT NULL;
CREATE INDEX log_records_errors ON log_records (id) WHERE level >= 40;
CREATE INDEX log_records_text ON log_records USING gin (to_tsvector('simple', message));
CREATE TABLE log_records_default PARTITION OF log_records DEFAULT;
CREATE TABLE log_dead_letters (
  id uuid NOT NULL PRIMARY KEY, received timestamptz NOT NULL, reason text NOT NULL,
  payload bytea NOT NULL
);
CREATE INDEX log_dead_letters_received ON log_dead_letters (received)
"""

#: ``seq`` keeps FTS5's row numbers where VACUUM would renumber an unnamed rowid. No trigger fills
#: the text index: by batch it costs a fifth of an insertion, row by row four times as much.
_SQLITE = """
CREATE TABLE log_records (
  seq INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, time BIGINT NOT NULL,
  level SMALLINT NOT NULL, category TEXT NOT NULL, step TEXT, message TEXT NOT NULL,
  task_id TEXT, run_id TEXT, concept_id TEXT, agent TEXT, details JSON, duration_ms DOUBLE
);
CREATE INDEX log_records_run ON log_records (run_id, id) WHERE run_id IS NOT NULL;
CREATE INDEX log_records_task ON log_records (task_id, id) WHERE task_id IS NOT NULL;
CREATE INDEX log_records_errors ON log_records (id) WHERE level >= 40;
CREATE VIRTUAL TABLE log_records_text USING
  fts5(message, content='log_records', content_rowid='seq');
CREATE TABLE log_dead_letters (
  id BLOB NOT NULL PRIMARY KEY, received BIGINT NOT NULL, reason TEXT NOT NULL,
  payload BLOB NOT NULL
);
CREATE INDEX log_dead_letters_received ON log_dead_letters (received)
"""

_SQLITE_TRIGGER = """
CREATE TRIGGER log_records_deleted BEFORE DELETE ON log_records BEGIN
  INSERT INTO log_records_text (log_records_text, rowid, message)
  VALUES ('delete', OLD.seq, OLD.message);
END
"""


def upgrade() -> None:
    """Make the tables that ``cloche.logs.table`` describes."""
    sqlite = op.get_bind().dialect.name == "sqlite"
    statements = [*(_SQLITE if sqlite else _POSTGRESQL).split(";\n")]
    for statement in (*statements, *([_SQLITE_TRIGGER] if sqlite else [])):
        op.execute(statement)


def downgrade() -> None:
    """Drop them."""
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP TABLE log_records_text")
    op.drop_table("log_records")
    op.drop_table("log_dead_letters")
