"""The Celery application: made with production defaults, or given them."""

from cloche.app.harden import create_app, harden, restore
from cloche.app.loading import load_app
from cloche.app.routing import consumed_queues, declared_names
from cloche.settings.of_app import Hardened, LeftAlone

__all__ = [
    "Hardened",
    "LeftAlone",
    "consumed_queues",
    "create_app",
    "declared_names",
    "harden",
    "load_app",
    "restore",
]
