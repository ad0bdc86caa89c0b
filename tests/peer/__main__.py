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
from tests.peer.comparison import Pair, Verdict, by_verdict, compare
from tests.peer.results import POOLS, URLS, Configuration, Result, Results
from tests.peer.source import PROJECT, SCRATCH, prepare
from tests.peer.suite import Limits, Suite

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
    pools = (options.pool,) if options.pool else POOLS
    results = Results(SCRATCH / "results.json")
    if not options.compare:
        prepare()
        suite = Suite(Limits(options.timeout, options.reruns), pytest_arguments, _revision())
        units = list(_units(suite.collect(), pools, results, resume=options.resume))
        _run(suite, units, results, options.jobs)
        for _ in range(options.looks):
            _run(suite, list(_second_looks(units, results)), results, jobs=1)
    return _tell({pool: pairs for pool in POOLS if (pairs := compare(results, pool))})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make peer-suite", description=__doc__, epilog="Other options go to pytest: -k canvas"
    )
    parser.add_argument("--pool", choices=POOLS, help="one pool only (make: POOL=threads)")
    parser.add_argument("--jobs", type=int, default=4, help="processes at a time [%(default)s]")
    parser.add_argument(
        "--timeout", type=float, default=240, help="seconds a test may take [%(default)s]"
    )
    parser.add_argument(
        "--reruns", type=int, default=2, help="of what the suite marks as flaky [%(default)s]"
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


def _second_looks(units: Sequence[Unit], results: Results) -> Iterator[Unit]:
    """What passes on stock only, a process for each test, with nothing beside it.

    Some of the suite's tests race with their own worker; a loaded machine decides then.
    """
    ran = {(unit.configuration, test) for unit in units for test in unit.tests}
    for pool in POOLS:
        for pair in by_verdict(compare(results, pool))[Verdict.STOCK_ONLY]:
            if (Configuration(pool, "ours"), pair.test) in ran:
                yield Unit(Configuration(pool, "ours"), [pair.test], again=pair.ours.reruns + 1)


def _run(suite: Suite, units: Sequence[Unit], results: Results, jobs: int) -> None:
    total = sum(len(unit.tests) for unit in units)
    number = itertools.count(1)

    def one(unit: Unit) -> None:
        def told(test: str, result: Result) -> None:
            result = replace(result, reruns=result.reruns + unit.again)
            results.record(unit.configuration, test, result)
            print(
                f"{next(number):>5}/{total} {unit.configuration!s:14} {result.outcome:8}"
                f"{result.seconds:6.1f} s  {test.removeprefix('t/integration/')}",
                flush=True,
            )

        suite.run(unit.configuration, unit.tests, told)

    with ThreadPoolExecutor(jobs) as executor:
        running = [executor.submit(one, unit) for unit in units]
        try:
            for done in running:
                done.result()
        except BaseException:  # Ctrl-C, above all
            executor.shutdown(wait=False, cancel_futures=True)
            suite.stop.set()
            raise


def _tell(pools: dict[str, list[Pair]]) -> int:
    (SCRATCH / "results.md").write_text(report.table(pools))
    report.write(DOCUMENT, pools)
    print(f"\n{report.counts(pools)}\nEach test: {(SCRATCH / 'results.md').relative_to(PROJECT)}")
    worse = {pool: by_verdict(pairs)[Verdict.STOCK_ONLY] for pool, pairs in pools.items()}
    for pool, pairs in worse.items():
        for pair in pairs:
            print(f"\n== {pool}: passes on stock only: {pair.test}\n{pair.ours.why or ''}")
    return 1 if any(worse.values()) else 0


def _revision() -> str:
    git = ("git", "-C", str(PROJECT), "describe", "--always", "--dirty")
    return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main(sys.argv[1:]))
