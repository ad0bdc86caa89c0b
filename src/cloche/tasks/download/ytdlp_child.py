"""Runs yt-dlp in a process that cannot outlive the one that started it.

Started by path (importing the package would cost time), with a pipe as standard input that
nobody writes to: when it closes, because the worker ended in whatever way, this process
group ends. ``--knows URL`` only tells whether a dedicated extractor would take the URL.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

import yt_dlp
from yt_dlp.extractor import gen_extractor_classes


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)
    os.killpg(0, signal.SIGKILL)


def _knows(url: str) -> bool:
    return any(
        extractor.suitable(url)
        for extractor in gen_extractor_classes()
        if extractor.ie_key() != "Generic"
    )


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if sys.argv[1] == "--knows":
        sys.exit(0 if _knows(sys.argv[2]) else 10)
    yt_dlp.main(sys.argv[1:])
