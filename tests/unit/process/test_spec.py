"""Process specs: what is refused, and the order of a stop."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.errors import ProcessError
from cloche.process.spec import ProcessSpec, stop_order


def _spec(name: str, *needs: str) -> ProcessSpec:
    return ProcessSpec(name=name, command=["true"], needs=needs)


def test_what_nobody_needs_stops_first_and_the_broker_last() -> None:
    order = stop_order(
        [
            _spec("broker"),
            _spec("beat", "worker"),
            _spec("worker", "broker"),
            _spec("web", "broker"),
        ]
    )
    assert order["beat"] < order["worker"] < order["broker"]
    assert order["web"] < order["broker"]


@given(st.lists(st.lists(st.integers(0, 30), max_size=4), min_size=1, max_size=12))
def test_every_process_stops_before_all_it_needs(shape: list[list[int]]) -> None:
    specs = [
        _spec(f"p{at}", *{f"p{need % at}" for need in needs if at})
        for at, needs in enumerate(shape)
    ]
    order = stop_order(specs)
    for spec in specs:
        assert all(order[spec.name] < order[need] for need in spec.needs)


@pytest.mark.parametrize(
    ("specs", "word"),
    [
        ([_spec("a", "b"), _spec("b", "a")], "circle"),
        ([_spec("a", "a")], "circle"),
        ([_spec("a", "nobody")], "nobody"),
        ([_spec("a"), _spec("a")], "same name"),
    ],
)
def test_specs_that_do_not_fit_are_refused(specs: list[ProcessSpec], word: str) -> None:
    with pytest.raises(ProcessError, match=word):
        stop_order(specs)


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden"])
def test_a_name_that_is_no_file_name_is_refused(name: str) -> None:
    with pytest.raises(ProcessError):
        _spec(name)
