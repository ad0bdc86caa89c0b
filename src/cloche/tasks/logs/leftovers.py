"""Records that ended processes left on this machine's disk: a worker that starts sends them.

Whoever logs looks for them, too; where nobody logs any more they would wait.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from celery import Celery, signals

from cloche.logs.write.counts import LogDirectory
from cloche.logs.write.shipper import WRITE, Shipper
from cloche.logs.write.spool import kept
from cloche.settings import Settings
from cloche.settings.of_app import settings_of

logger = logging.getLogger(__name__)


@signals.worker_ready.connect
def on_worker_ready(sender: Any = None, **_: Any) -> None:
    """In the main process of a worker that knows this family; returns at once."""
    app = sender.app
    if WRITE not in app.tasks:
        return
    settings = settings_of(app)
    if kept(LogDirectory(settings.run_dir).spool).ended:
        threading.Thread(
            target=_send, args=(app, settings), name="cloche-logs-leftovers", daemon=True
        ).start()


def _send(app: Celery, settings: Settings) -> None:
    shipper = Shipper(app, settings, settings.logs)
    try:
        sent = shipper.adopt()
    except Exception:  # the files are as they were
        logger.exception("what ended processes left of the execution log could not be sent")
    else:
        if sent:
            logger.info("sent %d records of the execution log that ended processes left", sent)
    finally:
        shipper.close()
