"""Publishing: from a template that Celery made, at once, in bulk, or from the spool."""
