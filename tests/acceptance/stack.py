"""A whole ``cloche up`` in a directory of its own, with its pages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import httpx2

from cloche import testing
from cloche.testing import free_port


class Stack(testing.Stack):
    """On a broker of its own, with service and dashboard on free ports."""

    def __init__(
        self, directory: Path, *arguments: str, environ: Mapping[str, str] | None = None
    ) -> None:
        self.service_port, self.dashboard_port = free_port(), free_port()
        defaults = {
            "CLOCHE_SERVICE__PORT": str(self.service_port),
            "CLOCHE_DASHBOARD__PORT": str(self.dashboard_port),
            "CLOCHE_SERVICE__ENABLED": "true",
            "CLOCHE_DASHBOARD__ENABLED": "true",
            "CLOCHE_BROKER__EMBEDDED": "always",
            "CLOCHE_DOWNLOAD__ALLOW_NETWORKS": '["127.0.0.0/8"]',
        }
        super().__init__(directory, *arguments, environ={**defaults, **(environ or {})})

    @property
    def service(self) -> str:
        return f"http://127.0.0.1:{self.service_port}"

    @property
    def dashboard(self) -> str:
        return f"http://127.0.0.1:{self.dashboard_port}"

    def _is_ready(self, times: int) -> bool:
        return super()._is_ready(times) and self.get("/readyz") == httpx2.codes.OK

    def get(self, path: str) -> int | None:
        try:
            return httpx2.get(self.service + path, timeout=5).status_code
        except httpx2.TransportError:
            return None
