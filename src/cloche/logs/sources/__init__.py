"""Other loggers as sources of the execution log."""
