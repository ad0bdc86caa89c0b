"""Addresses with parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from urllib.parse import urlencode


def link(path: str, params: Mapping[str, str], **more: object) -> str:
    """``path`` with those parameters, and those of ``more`` that are not None."""
    given = {**params, **{name: str(value) for name, value in more.items() if value is not None}}
    return f"{path}?{urlencode(given)}" if given else path


def adding(path: str, params: Mapping[str, str]) -> Callable[..., str]:
    """A function that gives ``path`` with ``params`` and what it is called with."""
    return lambda **more: link(path, params, **more)
