"""The application of the workers and producers of these tests; all settings by environment."""

from cloche.app import create_app

app = create_app("logs-project")
