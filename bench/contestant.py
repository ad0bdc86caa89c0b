"""What a contestant declares: its worker's command, its app, what it can do."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bench import contestants

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = ROOT / ".bench-venv"

Setting = Literal["ignored", "stored", "production"]
SETTINGS: tuple[Setting, ...] = ("ignored", "stored", "production")


def own_environment() -> Path:
    """The environment the harness runs in: the checkout's own, with Cloche installed."""
    return Path(sys.prefix)


@dataclass(frozen=True)
class Contestant:
    """One way to run jobs.

    ``worker`` is the command line after the environment's ``bin/``; ``{concurrency}``, ``{url}``
    and ``{queue}`` in it are replaced, and an app reads the same from bench/apps/case.py (with
    ``ready``: ``{port}``, ``{other_port}`` and ``{home}``, a folder kept from round to round).
    It is empty for one that only publishes. ``app`` is the module the driver imports to publish
    (bench/apps says what it must offer).
    """

    name: str
    worker: tuple[str, ...]
    app: str
    benchmarks: tuple[str, ...]
    environment: str = "peers"  # a folder of .bench-venv; "own" for the checkout's environment
    settings: tuple[Setting, ...] = ("ignored", "stored")
    production: tuple[str, ...] = ()  # further arguments in the production setting
    concurrency: int = 1
    copies: int = 1  # how many such worker processes are started
    share: float = 1.0  # of the jobs asked for: slow contestants get fewer
    variables: Mapping[str, str] = field(default_factory=dict)
    ready: str = ""  # instead of a job: the path on {port} that answers 200 once all is up
    grace: float = 5.0  # seconds it may take to stop
    missing: Callable[[], str | None] = lambda: None  # why it cannot run here, or None

    @property
    def bin(self) -> Path:
        """Where its commands are."""
        own = self.environment == "own"
        return (own_environment() if own else ENVIRONMENTS / self.environment) / "bin"

    def command(self, setting: Setting, **values: object) -> list[str]:
        """The worker's command line; ``values`` are what its braces name."""
        further = self.production if setting == "production" else ()
        program, *arguments = (*self.worker, *further)
        return [str(self.bin / program), *(argument.format(**values) for argument in arguments)]


def all_contestants() -> tuple[Contestant, ...]:
    """Every contestant of every file in bench/contestants, stock Celery first."""
    names = sorted(module.name for module in pkgutil.iter_modules(contestants.__path__))
    found: list[Contestant] = []
    for name in sorted(names, key=lambda name: name != "celery"):
        found += importlib.import_module(f"bench.contestants.{name}").CONTESTANTS
    return tuple(found)
