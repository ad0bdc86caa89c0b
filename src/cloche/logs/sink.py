"""What everything that writes records needs of a logger."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from cloche.logs.record import Level


class Log(Protocol):
    """`cloche.logs.logger.ExecutionLogger`, and anything else that takes records."""

    def log(
        self,
        level: Level,
        category: str,
        step: str | None,
        message: str,
        *,
        task_id: str | None = None,
        run_id: str | None = None,
        concept_id: str | None = None,
        agent: str | None = None,
        details: Mapping[str, Any] | None = None,
        duration_ms: float | None = None,
    ) -> object: ...
