"""A running stack for the tests of the web layer: broker, worker, source, service, dashboard."""

from __future__ import annotations

from tests.integration.web.fixtures import dashboard, files, service, stack

__all__ = ["dashboard", "files", "service", "stack"]
