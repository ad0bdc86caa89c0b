"""The scheduler: one process of many sends."""
