"""What is registered: benchmarks, contestants, the order they run in."""

from __future__ import annotations

from collections import Counter

from bench.__main__ import main
from bench.benchmarks import BENCHMARKS
from bench.contestant import ROOT, all_contestants
from bench.run import Options, jobs_of, plan
from click.testing import CliRunner

_DRAIN = BENCHMARKS[0]


def test_names_are_unique() -> None:
    for benchmark in BENCHMARKS:
        names = [one.name for one in all_contestants() if benchmark.name in one.benchmarks]
        assert not [name for name, count in Counter(names).items() if count > 1]


def test_every_contestant_enters_benchmarks_that_exist() -> None:
    known = {benchmark.name for benchmark in BENCHMARKS}
    for contestant in all_contestants():
        assert set(contestant.benchmarks) <= known, contestant.name


def test_every_baseline_is_a_contestant_of_its_benchmark() -> None:
    for benchmark in BENCHMARKS:
        names = {one.name for one in all_contestants() if benchmark.name in one.benchmarks}
        assert benchmark.baseline in names or not benchmark.baseline


def test_every_app_and_environment_named_is_there() -> None:
    for contestant in all_contestants():
        if contestant.app:
            assert (ROOT / f"{contestant.app.replace('.', '/')}.py").exists(), contestant.name
        if contestant.environment != "own":
            lists = ROOT / "bench" / "environments"
            assert (lists / f"{contestant.environment}.txt").exists()
            assert (lists / f"{contestant.environment}.lock").exists()


def test_no_list_of_packages_names_an_index() -> None:
    for listing in (ROOT / "bench" / "environments").glob("*.[tl]*"):
        text = listing.read_text()
        assert "://" not in text, listing.name
        assert "index-url" not in text, listing.name


def test_contestants_are_interleaved_round_by_round() -> None:
    three = [one for one in all_contestants() if "drain" in one.benchmarks][:3]
    order = [
        (contestant.name, number)
        for contestant, _, number in plan(_DRAIN, three, Options(rounds=2, settings=("stored",)))
    ]
    names = [one.name for one in three]
    assert order == [(name, 1) for name in names] + [(name, 2) for name in names]


def test_a_slow_contestant_gets_its_share_of_the_jobs_but_enough_of_them() -> None:
    slow = next(one for one in all_contestants() if one.name == "rq pool of 10 forking")
    assert jobs_of(_DRAIN, slow, Options()) == 1_000
    assert jobs_of(_DRAIN, slow, Options(jobs=2_000)) == 200


def test_the_list_shows_every_benchmark_and_contestant() -> None:
    shown = CliRunner().invoke(main, ["--list"])
    assert shown.exit_code == 0
    for name in [one.name for one in BENCHMARKS] + [one.name for one in all_contestants()]:
        assert name in shown.output


def test_an_unknown_benchmark_is_refused_with_the_known_ones() -> None:
    refused = CliRunner().invoke(main, ["drane"])
    assert refused.exit_code == 2
    assert "drain" in refused.output
