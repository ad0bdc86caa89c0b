"""Run by Alembic for each command; `cloche.database.schema` lends it the connection.

To write a migration by hand: copy the newest file in ``versions``, count up its number,
and set ``HEAD`` in ``schema.py`` to it.
"""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"], version_table="cloche_alembic_version"
)
with context.begin_transaction():
    context.run_migrations()
