"""Reads a running cluster through Celery's own doors: control, broker, result backend."""

from cloche.cluster.reader import Cluster
from cloche.cluster.results import read_run

__all__ = ["Cluster", "read_run"]
