"""Tasks that are coroutines: a worker pool for them, and a bridge from every other pool."""
