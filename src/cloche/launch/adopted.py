"""Workers that others started and that this launcher counts as its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from celery import Celery

from cloche.cluster.existing import ExistingWorker
from cloche.launch.existing import Say, stop_signals
from cloche.launch.workers import Declared, node_of
from cloche.process.unsupervised import stop_unsupervised
from cloche.settings.model import StopSettings

_LOOK_INTERVAL = 1.0


@dataclass(frozen=True, slots=True)
class Adopted:
    """An existing worker. ``label`` is the process it stands in for, so that this one is not
    started as well; without one it is watched and nothing else."""

    worker: ExistingWorker
    label: str = ""
    group: str = ""

    @property
    def name(self) -> str:
        return self.label or self.worker.name


def assign(
    app: Celery, existing: Sequence[ExistingWorker], workers: Mapping[str, Declared]
) -> tuple[Adopted, ...]:
    """Let existing workers stand in for declared ones: the same node name, else the same queues."""
    left = list(existing)
    adopted: list[Adopted] = []
    for fits in (_same_name, _same_queues):
        taken = {one.label for one in adopted}
        for one, label in _slots(workers):
            if label in taken:
                continue
            queues = one.queues(app)
            found = next((worker for worker in left if fits(worker, label, queues)), None)
            if found is not None:
                left.remove(found)
                adopted.append(Adopted(found, label, one.name))
    return (*adopted, *(Adopted(worker) for worker in left))


def _slots(workers: Mapping[str, Declared]) -> Iterator[tuple[Declared, str]]:
    return ((one, label) for one in workers.values() for label in one.labels())


def _same_name(worker: ExistingWorker, label: str, queues: frozenset[str]) -> bool:
    return worker.name == node_of(label)


def _same_queues(worker: ExistingWorker, label: str, queues: frozenset[str]) -> bool:
    return bool(queues) and queues == frozenset(worker.queues)


class Watch:
    """Keeps an eye on adopted workers and stops them when asked. Used in one event loop.

    ``ended`` is called with each that has gone by itself.
    """

    def __init__(
        self,
        adopted: Sequence[Adopted],
        stop: StopSettings,
        say: Say,
        ended: Callable[[Adopted], None],
    ) -> None:
        self._adopted = {one.name: one for one in adopted}
        self._signals = stop_signals(stop)
        self._say = say
        self._ended = ended
        self._task: asyncio.Task[None] | None = None

    def __iter__(self) -> Iterator[Adopted]:
        return iter(tuple(self._adopted.values()))

    def get(self, name: str) -> Adopted | None:
        """The adopted worker that commands call ``name``."""
        return self._adopted.get(name)

    def add(self, adopted: Sequence[Adopted]) -> None:
        self._adopted.update({one.name: one for one in adopted})
        self.start()

    def start(self) -> None:
        if self._adopted and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._run(), name="adopted workers")

    def close(self) -> None:
        """Look no more; the workers go on."""
        if self._task is not None:
            self._task.cancel()

    async def stop(self, name: str, *, now: bool = False) -> bool:
        """Stop one, gracefully or (``now``) at once. False if it would not go."""
        one = self._adopted.pop(name)
        signals = () if now else self._signals
        return await asyncio.to_thread(stop_unsupervised, one.worker.identity, signals, self._say)

    async def stop_all(self, *, now: bool = False) -> None:
        """Stop every one, all at the same time."""
        await asyncio.gather(*(self.stop(one.name, now=now) for one in self))

    async def _run(self) -> None:
        while self._adopted:
            await asyncio.sleep(_LOOK_INTERVAL)
            for one in self:
                if not one.worker.identity.alive():
                    del self._adopted[one.name]
                    self._ended(one)
