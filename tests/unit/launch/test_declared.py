"""Names of a worker's processes."""

from __future__ import annotations

import pytest

from cloche.launch.workers import labels


@pytest.mark.parametrize(
    ("count", "present", "expected"),
    [
        (1, (), ("w",)),
        (0, (), ()),
        (3, (), ("w-1", "w-2", "w-3")),
        (3, ("w",), ("w", "w-2", "w-3")),
        (2, ("w-1", "w-2", "w-3"), ("w-1", "w-2")),
        (1, ("w", "w-2"), ("w",)),
        (4, ("w-1", "w-3"), ("w-1", "w-3", "w-2", "w-4")),
        (0, ("w",), ()),
        (1, ("w-7",), ("w-7",)),
        (12, ("w-10", "w-9"), ("w-9", "w-10", *(f"w-{n}" for n in (*range(1, 9), 11, 12)))),
    ],
)
def test_processes_that_run_keep_their_names(
    count: int, present: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    assert labels("w", count, present) == expected
