"""The arithmetic behind the tables."""

from __future__ import annotations

import pytest
from bench.figures import commands, medians, percentile, ratio
from bench.report import number
from hypothesis import given
from hypothesis import strategies as st


def test_a_median_is_taken_for_each_figure_over_the_rounds_that_have_it() -> None:
    rounds = [{"rate": 100.0, "cold_s": 3.0}, {"rate": 300.0}, {"rate": 200.0}]
    assert medians(rounds) == {"rate": 200.0, "cold_s": 3.0}


def test_rounds_that_all_failed_have_no_figures() -> None:
    assert medians([{}, {}]) == {}


@pytest.mark.parametrize(
    ("value", "baseline", "higher", "expected"),
    [(3000.0, 1000.0, True, 3.0), (2.0, 10.0, False, 5.0), (None, 1.0, True, None)],
)
def test_a_ratio_says_how_many_times_better(
    value: float | None, baseline: float, higher: bool, expected: float | None
) -> None:
    assert ratio(value, baseline, higher_is_better=higher) == expected


def test_without_a_baseline_there_is_no_ratio() -> None:
    assert ratio(5.0, None, higher_is_better=True) is None


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1.0))
def test_a_percentile_is_a_value_that_its_share_does_not_exceed(
    values: list[float], share: float
) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-6


def test_a_percentile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


def test_the_harness_own_commands_are_not_counted() -> None:
    stats = {
        "cmdstat_brpop": {"calls": 7},
        "cmdstat_client|setname": {"calls": 2},
        "cmdstat_info": {"calls": 100},
        "cmdstat_ping": {"calls": 50},
    }
    assert commands(stats) == 9


@pytest.mark.parametrize(
    ("value", "shown"),
    [(6012.3, "6,010"), (100.4, "100"), (42.123, "42.1"), (0.0632, "0.0632"), (0.0, "0")],
)
def test_numbers_are_shown_with_three_digits(value: float, shown: str) -> None:
    assert number(value) == shown


def test_a_missing_number_is_shown_as_nothing() -> None:
    assert number(None) == ""
