"""Tests of the download family."""
