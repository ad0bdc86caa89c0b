"""The download service: its pages and its API."""
