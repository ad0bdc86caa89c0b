"""The ``download`` family: a URL becomes a file in the cache, with progress, once."""

from cloche.tasks.download.records import Download, DownloadState
from cloche.tasks.download.service import Downloads

__all__ = ["Download", "DownloadState", "Downloads"]
