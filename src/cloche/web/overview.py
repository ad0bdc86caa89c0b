"""The dashboard's front page, in fragments that are swapped when they change."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

from cloche.cluster import Cluster
from cloche.history.live import LiveTasks
from cloche.process.deaf import DeafWorker, DeafWorkers
from cloche.web import sse
from cloche.web.pages import render
from cloche.web.shared import Shared
from cloche.web.verdict import Silence, verdict_of

#: Tasks on the page.
SHOWN = 50
#: Seconds between looks at what the threads have gathered.
_PAUSE = 0.5
#: Gaps told on the page.
_GAPS = 3

Fragments = dict[str, str]


class Overview:
    """Renders the fragments once for all viewers."""

    def __init__(self, cluster: Cluster, live: LiveTasks, run_dir: Path) -> None:
        self._cluster = cluster
        self._live = live
        self._deaf = DeafWorkers(run_dir)
        self._silence = Silence()
        self._shared: Shared[Fragments] = Shared(self.fragments, lambda _: _PAUSE)
        self._rendered: tuple[object, Fragments] = (None, {})

    def close(self) -> None:
        """End every stream at once."""
        self._shared.close()

    def fragments(self) -> Fragments:
        """Section -> HTML, in the order of the page; rendered only when there is news."""
        snapshot = self._cluster.snapshot()
        silent = self._silence.silent(snapshot, self._live)
        deaf = tuple(self._deaf.lately(time.time()).values())
        state = (snapshot, self._live.version, silent, deaf)
        if self._rendered[0] != state:
            self._rendered = (state, self._render(silent, deaf))
        return self._rendered[1]

    async def stream(self) -> AsyncIterator[str]:
        """Every fragment that changed, as an event named after its section."""
        sent: Fragments = {}
        async with aclosing(self._shared.watch()) as looks:
            async for fragments in looks:
                if fragments is None:
                    yield sse.KEEP_ALIVE
                    continue
                for name, fragment in fragments.items():
                    if sent.get(name) != fragment:
                        yield sse.event(name, fragment)
                sent = fragments

    def _render(self, silent: tuple[str, ...], deaf: tuple[DeafWorker, ...]) -> Fragments:
        snapshot = self._cluster.snapshot()
        verdict = verdict_of(snapshot, silent, deaf)
        known = {"snapshot": snapshot}
        gaps = self._live.gaps()[-_GAPS:]
        waiting = sum(queue.length or 0 for queue in snapshot.queues)
        runs = self._live.recent(SHOWN)
        return {
            "verdict": render(
                "dashboard/verdict.html", verdict=verdict, gaps=gaps, unseen=snapshot.gaps
            ),
            "health": render("dashboard/health.html", **known, waiting=waiting),
            "workers": render("dashboard/workers.html", **known),
            "queues": render("dashboard/queues.html", **known),
            "tasks": render("dashboard/tasks.html", runs=runs, limit=SHOWN),
        }
