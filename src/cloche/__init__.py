"""Cloche: the production layer for Celery."""
