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
#: In an application that Cloche did not make, nothing runs that nobody asked for.
GUEST = Origin("default", "default of an existing application")


@dataclass(frozen=True, slots=True)
class OriginCandidate:
    """A value some source offers for a key, as it was written; secrets are SecretStr."""

    value: object
    origin: Origin


@dataclass(frozen=True)
class Resolved:
    """The settings, and per dotted key every candidate there was, the winner first.

    Keys nobody set have no candidates: their value is the default. ``warnings``: what could not
    be read of a project's own files.
    """

    settings: Settings
    candidates: Mapping[str, tuple[OriginCandidate, ...]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def origin(self, key: str) -> Origin:
        """Where the value of ``key`` (``broker.url``) came from."""
        offered = self.candidates.get(key)
        return offered[0].origin if offered else DEFAULT

    def changed(self) -> tuple[str, ...]:
        """The keys somebody set, sorted; set to the very default counts as set."""
        return tuple(key for key in sorted(self.candidates) if self.origin(key).kind != "default")

    def overrides(self, *, variables: bool = False) -> dict[str, OriginCandidate]:
        """What the command line set, to be handed to child processes by ``to_environ``.

        ``variables``: and what ``CLOCHE_*`` variables set, for processes of another terminal.
        """
        kinds = ("cli", "env") if variables else ("cli",)
        return {
            key: offered[0]
            for key, offered in self.candidates.items()
            if offered[0].origin.kind in kinds
        }

    def decided(self, key: str) -> bool:
        """Whether Cloche was told so itself: by its command line, variables or files."""
        return self.origin(key).kind in ("cli", "env", "dotenv", "file")
