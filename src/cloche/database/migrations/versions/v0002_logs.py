"""The execution log: its records, and what could not be stored as one."""

from alembic import op

revision = "0002"
down_revision = "0001"

#: Daily partitions are ``cloche_log_records_YYYYMMDD``; the default one is a net for days without.
_POSTGRESQL = """
CREATE TABLE cloche_log_records (
  id uuid NOT NULL PRIMARY KEY, time timestamptz NOT NULL, level smallint NOT NULL,
  category text NOT NULL, step text, message text NOT NULL, task_id text, run_id text,
  concept_id text, agent text, details jsonb, duration_ms double precision
) PARTITION BY RANGE (id);
CREATE INDEX cloche_log_records_run ON cloche_log_records (run_id, id) WHERE run_id IS NOT NULL;
CREATE INDEX cloche_log_records_task ON cloche_log_records (task_id, id) WHERE task_id IS NOT NULL;
CREATE INDEX cloche_log_records_errors ON cloche_log_records (id) WHERE level >= 40;
CREATE INDEX cloche_log_records_text ON cloche_log_records
  USING gin (to_tsvector('simple', message));
CREATE TABLE cloche_log_records_default PARTITION OF cloche_log_records DEFAULT;
CREATE TABLE cloche_log_dead_letters (
  id uuid NOT NULL PRIMARY KEY, received timestamptz NOT NULL, reason text NOT NULL,
  payload bytea NOT NULL
);
CREATE INDEX cloche_log_dead_letters_received ON cloche_log_dead_letters (received)
"""

#: ``seq`` keeps FTS5's row numbers where VACUUM would renumber an unnamed rowid. The text index
#: comes with 0004.
_SQLITE = """
CREATE TABLE cloche_log_records (
  seq INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, time BIGINT NOT NULL,
  level SMALLINT NOT NULL, category TEXT NOT NULL, step TEXT, message TEXT NOT NULL,
  task_id TEXT, run_id TEXT, concept_id TEXT, agent TEXT, details JSON, duration_ms DOUBLE
);
CREATE INDEX cloche_log_records_run ON cloche_log_records (run_id, id) WHERE run_id IS NOT NULL;
CREATE INDEX cloche_log_records_task ON cloche_log_records (task_id, id) WHERE task_id IS NOT NULL;
CREATE INDEX cloche_log_records_errors ON cloche_log_records (id) WHERE level >= 40;
CREATE TABLE cloche_log_dead_letters (
  id BLOB NOT NULL PRIMARY KEY, received BIGINT NOT NULL, reason TEXT NOT NULL,
  payload BLOB NOT NULL
);
CREATE INDEX cloche_log_dead_letters_received ON cloche_log_dead_letters (received)
"""


def upgrade() -> None:
    """Make the tables that ``cloche.logs.table`` describes."""
    sqlite = op.get_bind().dialect.name == "sqlite"
    for statement in (_SQLITE if sqlite else _POSTGRESQL).split(";\n"):
        op.execute(statement)


def downgrade() -> None:
    op.drop_table("cloche_log_records")
    op.drop_table("cloche_log_dead_letters")
