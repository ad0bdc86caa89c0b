"""Coroutines as tasks: one long-lived event loop per process, in every pool."""
