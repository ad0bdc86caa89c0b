"""The garbage collector, out of the way while a process imports its modules.

Imports make hundreds of thousands of objects that all stay, and the collector looks at them
again and again: 10 to 20 % of the time to start (measured on ``cloche worker`` and
``cloche service``).
"""

from __future__ import annotations

import gc


def pause() -> None:
    """Collect nothing until :func:`resume`. For the start of a process."""
    gc.disable()


def resume() -> None:
    """Collect from now on, but never again what was imported so far.

    Before a fork this also keeps the children's memory shared (gc.freeze).
    """
    gc.freeze()
    gc.enable()
