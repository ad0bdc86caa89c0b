"""What the runner tells the process through its environment."""

from __future__ import annotations

import os

PREFIX = "CLOCHE_PEER_"

#: ``redis://`` or ``cloche+redis://``, of a server for this process alone.
URL = os.environ.get(PREFIX + "URL", "")
OURS = URL.startswith("cloche+")
#: A worker pool as Celery names it; "eager" and "none" are no pools.
POOL = os.environ.get(PREFIX + "POOL", "").replace("asyncio", "cloche.aio.pool:TaskPool")
