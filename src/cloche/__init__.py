"""Cloche: the production layer for Celery.

The application: :func:`create_app`, :func:`harden`.
Settings: :func:`load`, :class:`Settings`.
Downloads: :class:`Downloads`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cloche.app import create_app, harden
    from cloche.settings import Settings, load
    from cloche.tasks.download import Downloads

__all__ = ["Downloads", "Settings", "create_app", "harden", "load"]

_HOMES = {
    "create_app": "cloche.app",
    "harden": "cloche.app",
    "Settings": "cloche.settings",
    "load": "cloche.settings",
    "Downloads": "cloche.tasks.download",
}


def __getattr__(name: str) -> object:
    # On first use (PEP 562): every command passes through this file, and Celery, pydantic
    # and SQLAlchemy would make `cloche --help` wait a second.
    if name not in _HOMES:
        raise AttributeError(f"module 'cloche' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
