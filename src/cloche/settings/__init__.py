"""Settings: read once at the edge, each value with its origin, then frozen."""

from cloche.settings.celery_app import set_by_app
from cloche.settings.environment import to_environ
from cloche.settings.loading import load, reload
from cloche.settings.model import Settings
from cloche.settings.origin import Origin, OriginCandidate, Resolved
from cloche.settings.secrets import hide_passwords, mask, mask_url

__all__ = [
    "Origin",
    "OriginCandidate",
    "Resolved",
    "Settings",
    "hide_passwords",
    "load",
    "mask",
    "mask_url",
    "reload",
    "set_by_app",
    "to_environ",
]
