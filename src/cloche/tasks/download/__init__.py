"""The ``download`` family: a URL becomes a file in the cache, with progress, once."""

from cloche.tasks.download.desk import Downloads
from cloche.tasks.download.records import Download, DownloadState

__all__ = ["Download", "DownloadState", "Downloads"]
