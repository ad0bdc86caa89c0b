"""The dashboard's front page, in fragments that are swapped when they change."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from heapq import nlargest

from cloche.cluster import Cluster
from cloche.health.checks import CHECKS, Scene, findings
from cloche.health.hung import Silence
from cloche.history.live import LiveTasks
from cloche.process.events import RestartedWorkers
from cloche.records import QueueSeen
from cloche.settings import Settings
from cloche.web import live as sse
from cloche.web.live import Shared
from cloche.web.pages import render

#: Tasks on the page.
SHOWN = 50
#: Queues and workers on the page, and troubles in words.
ROWS, TROUBLES = 50, 20
#: Seconds between looks at what the threads have gathered.
_LOOK_INTERVAL = 0.5
#: Gaps told on the page.
_GAPS = 3

Fragments = dict[str, str]


class Overview:
    """Renders the fragments once for all viewers."""

    def __init__(self, cluster: Cluster, live: LiveTasks, settings: Settings) -> None:
        self._cluster = cluster
        self._live = live
        self._settings = settings
        self._restarted = RestartedWorkers(settings.run_dir)
        self._silence = Silence()
        self._shared: Shared[Fragments] = Shared(self.fragments, lambda _: _LOOK_INTERVAL)
        self._rendered: tuple[object, Fragments] = (None, {})

    def close(self) -> None:
        """End every stream at once."""
        self._shared.close()

    def fragments(self) -> Fragments:
        """Section -> HTML, in the order of the page; rendered only when there is news."""
        snapshot = self._cluster.snapshot()
        silent: tuple[str, ...] = ()
        if self._live.listening:
            silent = self._silence.silent(snapshot, self._live.workers())
        restarts = self._restarted.lately(time.time())
        state = (snapshot, self._live.version, silent, restarts)
        if self._rendered[0] != state:
            scene = Scene(self._settings, snapshot, restarts=restarts, silent=silent)
            self._rendered = (state, self._render(scene))
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

    def _render(self, scene: Scene) -> Fragments:
        snapshot = scene.snapshot
        known = {"snapshot": snapshot}
        gaps = self._live.gaps()[-_GAPS:]
        waiting = sum(queue.length or 0 for queue in snapshot.queues)
        runs = self._live.recent(SHOWN)
        return {
            "verdict": render(
                "dashboard/verdict.html",
                **verdict(scene),
                gaps=gaps,
                unseen=snapshot.gaps,
                most=TROUBLES,
            ),
            "health": render("dashboard/health.html", **known, waiting=waiting),
            "workers": render("dashboard/workers.html", **known, workers=snapshot.workers[:ROWS]),
            "queues": render("dashboard/queues.html", **known, queues=_fullest(snapshot.queues)),
            "tasks": render("dashboard/tasks.html", runs=runs, limit=SHOWN),
        }


def verdict(scene: Scene) -> dict[str, object]:
    """What the page says of all: ``kind`` (good, warn or bad), ``troubles`` (verdicts that are not
    good), ``workers``; ``waiting``: nothing has been seen yet."""
    snapshot = scene.snapshot
    if not snapshot.health:
        return {"kind": "warn", "troubles": (), "workers": 0, "waiting": True}
    kinds = [check.kind for check in CHECKS]
    if scene.blind:  # told by the gaps
        kinds.remove("workers")
    troubles = [one for one in findings(scene, kinds) if not one.ok]
    troubles.sort(key=lambda one: one.warns)
    bad = any(not one.warns for one in troubles)
    kind = "bad" if bad else "warn" if troubles or snapshot.gaps else "good"
    return {
        "kind": kind, "troubles": troubles, "workers": len(snapshot.workers), "waiting": False,
    }  # fmt: skip


def _fullest(queues: tuple[QueueSeen, ...]) -> tuple[QueueSeen, ...]:
    """All, or of too many those with the most messages, in their order."""
    if len(queues) <= ROWS:
        return queues
    chosen = {queue.name for queue in nlargest(ROWS, queues, key=lambda one: one.length or 0)}
    return tuple(queue for queue in queues if queue.name in chosen)
