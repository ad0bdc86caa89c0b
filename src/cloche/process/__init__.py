"""Supervised processes: specs, identity, readiness, output, stop, the guard.

Knows commands, never Celery. This file imports nothing: the guard runs from this package
with nothing but the standard library.
"""
