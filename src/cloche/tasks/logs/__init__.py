"""The ``logs`` family: batches of the execution log into the database."""

from cloche.tasks.logs import leftovers
from cloche.tasks.logs.task import write

__all__ = ["leftovers", "write"]
