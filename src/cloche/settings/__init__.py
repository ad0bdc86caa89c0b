"""Settings: read once at the edge, each value with its origin, then frozen."""

from cloche.settings.model import Settings

__all__ = ["Settings"]
