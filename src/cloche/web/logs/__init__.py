"""Pages and API of the execution log."""
