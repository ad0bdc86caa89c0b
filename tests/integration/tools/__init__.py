"""What projects put around Celery, on every pool."""
