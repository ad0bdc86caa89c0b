"""``make peer-suite``: exit code 1 if a test passes on stock ``redis://`` and not on ours."""

from __future__ import annotations

import argparse
import itertools
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from tests.peer import report
from tests.peer.comparison import Verdict, by_verdict, compare
from tests.peer.results import URLS, Configuration, Result, Results
from tests.peer.runner import Limits, Runner
from tests.peer.source import PROJECT, SCRATCH, Source
from tests.peer.suites import SUITES, Suite

#: Tests of a file that share a process and its worker, at most: the longest file has 300.
PART = 40

DOCUMENT = PROJECT / "docs" / "compatibility.md"


@dataclass(frozen=True, slots=True)
class Unit:
    """Tests of one file, for one process. ``again`` counts earlier tries."""

    configuration: Configuration
    tests: list[str]
    again: int = 0


def main(arguments: Sequence[str]) -> int:
    """Run what the arguments choose, add it to the results, compare all there is."""
    options, pytest_arguments = _parser().parse_known_args(arguments)
    if not options.compare:
        revision = _revision()
        limits = Limits(options.timeout, options.reruns)
        for suite in SUITES:
            pools = [pool for pool in suite.pools if options.pool in (None, pool)]
            if pools and options.suite in (None, suite.name):
                runner = Runner(Source(suite), limits, pytest_arguments, revision)
                _suite(runner, pools, options)
    return _tell(_all_results())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make peer-suite", description=__doc__, epilog="Other options go to pytest: -k canvas"
    )
    names = [suite.name for suite in SUITES]
    pools = sorted({pool for suite in SUITES for pool in suite.pools})
    parser.add_argument("--suite", choices=names, help="one suite only (make: SUITE=kombu)")
    parser.add_argument("--pool", choices=pools, help="one pool only (make: POOL=threads)")
    parser.add_argument("--jobs", type=int, default=4, help="processes at a time [%(default)s]")
    parser.add_argument(
        "--timeout", type=float, default=240, help="seconds a test may take [%(default)s]"
    )
    parser.add_argument(
        "--reruns", type=int, default=2, help="of what a suite marks as flaky [%(default)s]"
    )
    parser.add_argument(
        "--looks",
        type=int,
        default=2,
        help="further tries, each alone, of what passes on stock only [%(default)s]",
    )
    parser.add_argument("--resume", action="store_true", help="run only what has no result yet")
    parser.add_argument("--compare", action="store_true", help="run nothing")
    return parser


def _suite(runner: Runner, pools: Sequence[str], options: argparse.Namespace) -> None:
    runner.source.prepare()
    results = _results(runner.source.suite)
    units = list(_units(runner.collect(), pools, results, resume=options.resume))
    _run(runner, units, results, options.jobs)
    for _ in range(options.looks):
        _run(runner, list(_second_looks(runner.source.suite, units, results)), results, jobs=1)


def _units(
    tests: Sequence[str], pools: Sequence[str], results: Results, *, resume: bool
) -> Iterator[Unit]:
    """Both URLs of some tests next to each other: they meet the same load of the machine."""
    files = [list(found) for _, found in itertools.groupby(tests, lambda t: t.partition("::")[0])]
    parts = [found[at : at + PART] for found in files for at in range(0, len(found), PART)]
    for found in sorted(parts, key=len, reverse=True):
        for pool, url in itertools.product(pools, URLS):
            configuration = Configuration(pool, url)
            known = results.of(configuration) if resume else ()
            if left := [test for test in found if test not in known]:
                yield Unit(configuration, left)


def _second_looks(suite: Suite, units: Sequence[Unit], results: Results) -> Iterator[Unit]:
    """What passes on stock only, a process for each test, with nothing beside it.

    Some tests race with their own worker; a loaded machine decides then.
    """
    ran = {(unit.configuration, test) for unit in units for test in unit.tests}
    for pool in suite.pools:
        for pair in by_verdict(compare(results, pool, suite.wanted))[Verdict.STOCK_ONLY]:
            if (Configuration(pool, "ours"), pair.test) in ran:
                yield Unit(Configuration(pool, "ours"), [pair.test], again=pair.ours.reruns + 1)


def _run(runner: Runner, units: Sequence[Unit], results: Results, jobs: int) -> None:
    total = sum(len(unit.tests) for unit in units)
    number = itertools.count(1)
    name = runner.source.suite.name

    def one(unit: Unit) -> None:
        def told(test: str, result: Result) -> None:
            result = replace(result, reruns=result.reruns + unit.again)
            results.record(unit.configuration, test, result)
            print(
                f"{name} {next(number):>5}/{total} {unit.configuration!s:14} {result.outcome:8}"
                f"{result.seconds:6.1f} s  {report.short(test)}",
                flush=True,
            )

        runner.run(unit.configuration, unit.tests, told)

    with ThreadPoolExecutor(jobs) as executor:
        running = [executor.submit(one, unit) for unit in units]
        try:
            for done in running:
                done.result()
        except BaseException:  # Ctrl-C, above all
            executor.shutdown(wait=False, cancel_futures=True)
            runner.stop.set()
            raise


def _results(suite: Suite) -> Results:
    return Results(SCRATCH / suite.name / "results.json")


def _all_results() -> report.Found:
    """Suites and pools that ran."""
    found: report.Found = {}
    for suite in SUITES:
        results = _results(suite)
        for pool in suite.pools:
            if pairs := compare(results, pool, suite.wanted):
                found.setdefault(suite.name, {})[pool] = pairs
    return found


def _tell(found: report.Found) -> int:
    SCRATCH.mkdir(exist_ok=True)
    (SCRATCH / "results.md").write_text(report.table(found))
    report.write(DOCUMENT, found)
    print(f"\n{report.counts(found)}\nEach test: {(SCRATCH / 'results.md').relative_to(PROJECT)}")
    worse = [
        (name, pool, pair)
        for name, pools in found.items()
        for pool, pairs in pools.items()
        for pair in by_verdict(pairs)[Verdict.STOCK_ONLY]
    ]
    for name, pool, pair in worse:
        print(f"\n== {name}, {pool}: passes on stock only: {pair.test}\n{pair.ours.why or ''}")
    return 1 if worse else 0


def _revision() -> str:
    git = ("git", "-C", str(PROJECT), "describe", "--always", "--dirty")
    return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main(sys.argv[1:]))
