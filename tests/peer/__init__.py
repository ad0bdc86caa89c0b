"""Celery's own integration suite, run on stock ``redis://`` and on ``cloche+redis://`` alike."""
