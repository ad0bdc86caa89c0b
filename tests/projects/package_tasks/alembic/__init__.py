"""Migrations of the project, as `alembic init` with a package makes them."""
