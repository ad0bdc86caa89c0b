"""What goes wrong in a benchmark."""

from __future__ import annotations


class BenchError(Exception):
    """A run that cannot go on; the text says why, with the last lines of whoever failed."""
