"""Server-sent events (HTML Living Standard §9.2)."""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.responses import StreamingResponse

#: A comment line: keeps proxies from closing a quiet stream.
KEEP_ALIVE = ":\n\n"


def event(name: str, data: str, *, id: str | None = None) -> str:
    """One event; every line of ``data`` gets its own ``data:`` field."""
    lines = [f"event: {name}"]
    if id is not None:
        lines.append(f"id: {id}")
    lines += [f"data: {line}" for line in data.splitlines() or [""]]
    return "\n".join(lines) + "\n\n"


def stream(events: AsyncIterator[str]) -> StreamingResponse:
    """Answer with an endless stream that nothing on the way may store or hold back."""
    return StreamingResponse(
        events,
        media_type="text/event-stream",
        headers={"cache-control": "no-store", "x-accel-buffering": "no"},
    )
