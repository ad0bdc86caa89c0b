"""``/healthz`` (the process lives) and ``/readyz`` (what it needs answers)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cloche.records import Health
from cloche.web.auth import trusted

#: Seconds for which an answer to ``/readyz`` serves further askers.
_FRESH = 1.0


class Probes:
    """``needed`` runs the checks that decide; ``noted`` gives further ones that only inform."""

    def __init__(
        self,
        needed: Callable[[], tuple[Health, ...]],
        noted: Callable[[], tuple[Health, ...]] = tuple,
    ) -> None:
        self._needed = needed
        self._noted = noted
        self._lock = threading.Lock()
        self._last: tuple[float, tuple[Health, ...]] = (0.0, ())

    def routes(self) -> list[Route]:
        return [Route("/healthz", self.alive), Route("/readyz", self.ready)]

    async def alive(self, _request: Request) -> Response:
        """200 as long as the process answers at all."""
        return JSONResponse({"status": "alive"}, headers={"cache-control": "no-store"})

    async def ready(self, request: Request) -> Response:
        """200 when every needed check passes, else 503; details only for those we trust."""
        needed = await run_sync(self._checked)
        noted = self._noted()
        good = all(check.ok for check in needed)
        told = trusted(request.scope)
        body = {
            "status": "ready" if good else "not ready",
            "checks": {
                **{check.name: _words(check, True, told) for check in needed},
                **{check.name: _words(check, False, told) for check in noted},
            },
        }
        return JSONResponse(body, 200 if good else 503, {"cache-control": "no-store"})

    def _checked(self) -> tuple[Health, ...]:
        """One run of the checks for all who ask within a second."""
        with self._lock:
            at, verdicts = self._last
            if time.monotonic() - at > _FRESH or not verdicts:
                verdicts = self._needed()
                self._last = (time.monotonic(), verdicts)
            return verdicts


def _words(check: Health, needed: bool, told: bool) -> dict[str, object]:
    short: dict[str, object] = {"ok": check.ok, "needed": needed}
    if not told:
        return short
    return {**short, "detail": check.detail, "seconds": round(check.took, 4)}
