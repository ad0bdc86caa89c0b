"""A short run: programs that once showed a difference, and some new ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from tests.differential.kept import kept_for
from tests.differential.programs import Abilities, Program, generate
from tests.differential.run import Bench, confirmed
from tests.differential.wanted import DOCUMENT, document

#: Programs made up for each pool, beside those that are kept.
NEW = 8


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("pool", "profile"), [("prefork", "watched"), ("threads", "quiet"), ("asyncio", "watched")]
)
def test_a_user_sees_what_stock_shows(pool: str, profile: str) -> None:
    programs = [*kept_for(pool), *generate(NEW, 1, Abilities.of(pool))]
    with Bench(pool, profile, ("celery", "cloche")) as bench:
        suspects = [one for one in bench.compare(programs) if one.unexplained]
        found = confirmed(bench, suspects)
    assert not found, "\n".join(_lines(found))


def test_the_page_tells_what_differs() -> None:
    assert DOCUMENT.read_text() == document(), "run python -m tests.differential.wanted"


def _lines(found: Sequence[tuple[str, Program, Sequence[object]]]) -> Iterator[str]:
    for launcher, program, differences in found:
        yield f"{launcher} worker: {program}"
        yield from (f"    {difference}" for difference in differences)
