"""Cloche inside other frameworks."""
