"""When a pool process has used too much memory, and that it says so."""

from __future__ import annotations

import logging

import pytest

from cloche.worker.prefork import MemoryLimit


def test_a_model_that_needs_much_memory_is_no_leak(caplog: pytest.LogCaptureFixture) -> None:
    limit = MemoryLimit.of(500, growth=True)
    with caplog.at_level(logging.WARNING, "cloche.worker.prefork"):
        assert [used > limit for used in (600, 700, 1100)] == [False, False, False]
        assert not caplog.records
        assert limit < 1101
    assert "501 KiB more than after its first task" in caplog.text
    assert (limit > 0, str(int(limit))) == (True, "500"), "as billiard asks and formats it"


def test_a_limit_of_the_application_means_what_it_means_to_celery(
    caplog: pytest.LogCaptureFixture,
) -> None:
    limit = MemoryLimit.of(500, growth=False)
    with caplog.at_level(logging.WARNING, "cloche.worker.prefork"):
        assert [used > limit for used in (500, 501)] == [False, True]
    assert "it uses 501 KiB (max_memory_per_child is 500 KiB)" in caplog.text
