"""Where a value came from, what else was offered for it, and which one won."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from cloche.settings.model import Settings

Kind = Literal["cli", "env", "well-known", "dotenv", "file", "app", "default"]


@dataclass(frozen=True, slots=True)
class Origin:
    """``where`` names the place: ``CLOCHE_BROKER__URL``, ``cloche.toml:12``, ``--set app``."""

    kind: Kind
    where: str

    def __str__(self) -> str:
        return self.where


DEFAULT = Origin("default", "default")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A value some source offers for a key, as it was written; secrets are SecretStr."""

    value: object
    origin: Origin


@dataclass(frozen=True)
class Resolved:
    """The settings, and per dotted key every candidate there was, the winner first.

    Keys nobody set have no candidates: their value is the default.
    """

    settings: Settings
    candidates: Mapping[str, tuple[Candidate, ...]] = field(default_factory=dict)

    def origin(self, key: str) -> Origin:
        """Where the value of ``key`` (``broker.url``) came from."""
        offered = self.candidates.get(key)
        return offered[0].origin if offered else DEFAULT

    def changed(self) -> tuple[str, ...]:
        """The keys somebody set, sorted; set to the very default counts as set."""
        return tuple(sorted(self.candidates))

    def overrides(self) -> dict[str, object]:
        """What the command line set, to be handed to child processes by ``to_environ``."""
        return {
            key: offered[0].value
            for key, offered in self.candidates.items()
            if offered[0].origin.kind == "cli"
        }
