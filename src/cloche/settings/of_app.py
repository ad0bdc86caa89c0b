"""What Cloche keeps of an application: its settings, and what was done to it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from celery import Celery

from cloche.settings.celery_app import set_by_app
from cloche.settings.celery_keys import CeleryDefault
from cloche.settings.loading import load
from cloche.settings.model import Settings
from cloche.settings.origin import Resolved

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LeftAlone:
    """A default that was not applied, because the application says otherwise."""

    key: str
    value: Any
    default: Any


@dataclass(frozen=True, slots=True)
class Hardened:
    """What `cloche.app.harden.harden` did: ``applied``, and what it ``left_alone``.

    ``notes`` are what it could not reach. ``before`` is what the application had set itself,
    ``written`` what hardening put there.
    """

    applied: tuple[CeleryDefault, ...]
    left_alone: tuple[LeftAlone, ...]
    notes: tuple[str, ...] = ()
    before: Mapping[str, Any] = field(default_factory=dict)
    written: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class AppState:
    """What Cloche keeps of one application: ``app.cloche``."""

    #: Whether `cloche.create_app` has made it.
    own: bool = False
    settings: Settings | None = None
    hardened: Hardened = Hardened((), ())
    #: A worker's: where a value of the settings came from, in words, or "".
    origin: Callable[[str], str] = lambda key: ""
    #: A worker's: whether its limit of memory is one of growth since its start.
    memory_growth: bool = False
    #: Whether those who listen to ``on_after_configure`` have still to hear of it.
    untold: bool = False
    #: Whether ``backend_cls`` is ours, so that hardening again may take it back.
    chose_backend: bool = False


def state_of(app: Celery) -> AppState:
    """What Cloche keeps of ``app``."""
    found = app.__dict__.get("cloche")
    if not isinstance(found, AppState):
        found = app.cloche = AppState()
    return found


def is_own(app: Celery) -> bool:
    """Whether the application was made with ``create_app``, for Cloche."""
    return state_of(app).own


def load_for(app: Celery) -> Resolved:
    """The settings of the working directory for ``app``, with what it has set itself.

    Ask before it is hardened. Raises SettingsError.
    """
    found = load(app_conf=set_by_app(app.conf), guest=not is_own(app))
    for warning in found.warnings:
        logger.warning("%s", warning)
    return found


def settings_of(app: Celery) -> Settings:
    """What `create_app` or `harden` left on the application.

    On a bare application they are loaded, once, as they would be for the command line.
    """
    state = state_of(app)
    if state.settings is None:
        state.settings = load_for(app).settings
    return state.settings
