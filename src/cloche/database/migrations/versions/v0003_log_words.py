"""Words of the execution log as `cloche.plain.search_words` makes them: of languages that write
none apart, and without accents. On SQLite the index comes with 0004.
"""

from alembic import op
from sqlalchemy import text

revision = "0003"
down_revision = "0002"

#: The same as `cloche.plain.search_words`, which the tests compare. ``normalize`` exists only where
#: the database's encoding is UTF-8; others hold no such text.
_FUNCTION = r"""
CREATE FUNCTION cloche_words(message text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
SELECT CASE WHEN message ~ '[^\u0001-\u007f]' THEN
  regexp_replace(
    normalize(regexp_replace(normalize(message, NFD), '[{marks}]', '', 'g'), NFC),
    '([{alone}])', ' \1 ', 'g')
ELSE message END
$$
"""
_PLAIN_FUNCTION = """
CREATE FUNCTION cloche_words(message text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
SELECT message
$$
"""
_MARKS = r"\u0300-\u036f\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ece"
_ALONE = (
    r"\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"
    r"\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)


def upgrade() -> None:
    """Make the text index anew."""
    connection = op.get_bind()
    if connection.dialect.name == "sqlite":
        return
    encoding = connection.execute(text("SELECT getdatabaseencoding()")).scalar_one()
    function = _FUNCTION.replace("{marks}", _MARKS).replace("{alone}", _ALONE)
    connection.exec_driver_sql(function if encoding == "UTF8" else _PLAIN_FUNCTION)
    connection.exec_driver_sql("DROP INDEX cloche_log_records_text")
    connection.exec_driver_sql(
        "CREATE INDEX cloche_log_records_text ON cloche_log_records "
        "USING gin (to_tsvector('simple', cloche_words(message)))"
    )


def downgrade() -> None:
    """There is none: the words of version 0002 cannot be told from these."""
    raise NotImplementedError
