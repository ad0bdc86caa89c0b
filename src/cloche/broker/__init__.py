"""The message broker: is it usable, which one to use, and one of our own to run."""
