"""``make differential``: exit code 1 if something differs that nobody wants to."""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from tests.differential import wanted
from tests.differential.programs import Abilities, Program, generate
from tests.differential.run import Bench, Verdict, repeated
from tests.differential.shrink import shrink

POOLS = ("prefork", "threads", "solo", "asyncio")
PROFILES = ("watched", "quiet")
#: Suspects that run again side by side.
AGAIN = 12


def main() -> int:
    parser = argparse.ArgumentParser(prog="make differential", description=__doc__)
    parser.add_argument("-n", type=int, default=200, help="programs per pool [%(default)s]")
    parser.add_argument("--pool", action="append", choices=POOLS, help="these only")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--launchers", default="celery,cloche")
    parser.add_argument("--profiles", default=",".join(PROFILES))
    parser.add_argument("--at-once", type=int, default=60, help="programs at a time")
    parser.add_argument(
        "--kinds", type=int, default=40, help="kinds of differences shrunk, at most"
    )
    parser.add_argument("--no-shrink", action="store_true")
    parser.add_argument("--ignore", action="append", default=[], help="kinds not looked at (regex)")
    parser.add_argument("--without", help="leave out programs with this in their JSON (regex)")
    parser.add_argument("--show", type=Path, help="play one kept program and print what differs")
    parser.add_argument("--report", type=Path, help="write what was found there, as JSON lines")
    options = parser.parse_args()
    wanted.IGNORED.extend(options.ignore)
    table: Counter[tuple[str, str, str]] = Counter()
    launchers = options.launchers.split(",")
    for pool in options.pool or POOLS:
        can = Abilities.of(pool)
        profiles = options.profiles.split(",")
        for profile in profiles:
            if options.show:
                programs = [json.loads(options.show.read_text())["program"]]
            else:
                programs = generate(options.n // len(profiles), options.seed, can)
            if options.without:
                pattern = re.compile(options.without)
                programs = [one for one in programs if not pattern.search(json.dumps(one))]
            with Bench(pool, profile, launchers) as bench:
                _run(bench, programs, options, table)
    print(f"\n{'pool':10}{'launcher':10}{'programs':>10}{'differ':>8}{'explained':>11}"
          f"{'not again':>11}{'unexplained':>13}")  # fmt: skip
    for pool in options.pool or POOLS:
        for launcher in launchers:
            row = [table[pool, launcher, key] for key in
                   ("programs", "differ", "explained", "not again", "unexplained")]  # fmt: skip
            print(f"{pool:10}{launcher:10}{row[0]:10}{row[1]:8}{row[2]:11}{row[3]:11}{row[4]:13}")
    return 1 if any(key == "unexplained" and table[p, ln, key] for p, ln, key in table) else 0


def _run(
    bench: Bench,
    programs: list[Program],
    options: argparse.Namespace,
    table: Counter[tuple[str, str, str]],
) -> None:
    began = time.monotonic()
    suspects: list[Verdict] = []
    for done, verdict in enumerate(bench.compare(programs, at_once=options.at_once), 1):
        table[bench.pool, verdict.launcher, "programs"] += 1
        if verdict.explained and not verdict.unexplained:
            table[bench.pool, verdict.launcher, "explained"] += 1
        if verdict.explained or verdict.unexplained:
            table[bench.pool, verdict.launcher, "differ"] += 1
        if verdict.unexplained:
            suspects.append(verdict)
        if done % (options.at_once * 2) == 0 or done == len(programs) * len(bench.settings[1:]):
            took = time.monotonic() - began
            print(
                f"{bench.pool} {bench.profile}: {done} comparisons of {len(programs)} programs "
                f"in {took:.0f} s, {len(suspects)} suspects",
                flush=True,
            )
    _explain(bench, suspects, options, table)


def _explain(
    bench: Bench,
    suspects: list[Verdict],
    options: argparse.Namespace,
    table: Counter[tuple[str, str, str]],
) -> None:
    """Run suspects again, a few at a time, and shrink one of each kind that stays."""
    seen: set[str] = set()
    while suspects:
        batch = suspects[:AGAIN]
        suspects = suspects[AGAIN:]
        for suspect, kinds in zip(batch, repeated(bench, batch), strict=True):
            word = "unexplained" if kinds else "not again"
            table[bench.pool, suspect.launcher, word] += 1
            if not kinds and options.show:
                print("not again:", *suspect.unexplained, sep="\n  ")
            fresh = sorted(kind for kind in kinds if kind not in seen)
            seen |= kinds
            if not fresh:
                continue
            best = suspect
            if not options.no_shrink and not options.show:
                best = shrink(bench, suspect, fresh[0])
            _show(bench, best, fresh, options)
        left = [one for one in suspects if one.kinds - seen]
        for one in suspects:
            if one not in left:
                table[bench.pool, one.launcher, "unexplained"] += 1
        suspects = left


def _show(bench: Bench, verdict: Verdict, kinds: list[str], options: argparse.Namespace) -> None:
    print(f"\n== {bench.pool} {verdict.launcher} {bench.profile}: {kinds[:6]}")
    for difference in verdict.unexplained[:12]:
        print(f"   {difference}")
    print("   " + json.dumps(verdict.program), flush=True)
    if options.report:
        with options.report.open("a") as report:
            report.write(json.dumps({
                "pool": bench.pool, "launcher": verdict.launcher, "profile": bench.profile,
                "kinds": kinds, "program": verdict.program,
                "differences": [str(one) for one in verdict.unexplained],
            }) + "\n")  # fmt: skip


if __name__ == "__main__":
    # Ended by others, too, it takes its workers with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
