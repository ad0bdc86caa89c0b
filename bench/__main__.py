"""The command line: ``python -m bench --help``."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import psutil
from rich.console import Console
from rich.markup import escape

from bench import environments, report
from bench.benchmarks import BENCHMARKS, Benchmark
from bench.contestant import ENVIRONMENTS, ROOT, SETTINGS, Contestant, all_contestants
from bench.errors import BenchError
from bench.guard import guarding
from bench.log_queries import log_queries
from bench.run import Options, Run, machine, run_all
from bench.server import serving

RESULTS = ROOT / "bench" / "results"
_EXAMPLES = """\b
Examples:
  python -m bench --list
  python -m bench drain --quick
  python -m bench drain publish --only celery --only huey --rounds 5
  python -m bench drain --setting production --jobs 2000 --json out.json
  python -m bench log-queries --rows 1000000
"""
_WIDTH = 120  # columns when the output is no terminal
console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)


@click.command(epilog=_EXAMPLES)
@click.argument("names", nargs=-1, metavar="[NAME]…")
@click.option("--rounds", type=click.IntRange(1), help="Rounds of all contestants.  [3; quick: 1]")
@click.option("--jobs", type=click.IntRange(20), help="Jobs of a run, instead of the usual number.")
@click.option("--only", multiple=True, help="Contestants whose name contains this; repeatable.")
@click.option("--setting", "settings", multiple=True, type=click.Choice(SETTINGS), help="Only so.")
@click.option("--quick", is_flag=True, help="A tenth of the jobs, one round: a rough look.")
@click.option("--server", type=click.Choice(["valkey", "redis-server"]), default="valkey")
@click.option("--deadline", type=float, default=180.0, help="Seconds a run may take.  [180]")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Where figures go.")
@click.option("--plots", type=click.Path(path_type=Path), help="Folder the plots go to.")
@click.option("--list", "listing", is_flag=True, help="Show benchmarks and contestants; no run.")
def main(
    names: tuple[str, ...],
    rounds: int | None,
    jobs: int | None,
    only: tuple[str, ...],
    settings: tuple[Any, ...],
    quick: bool,
    server: str,
    deadline: float,
    json_file: Path | None,
    plots: Path | None,
    listing: bool,
) -> None:
    """Compare stock Celery, its peers and Cloche on this machine.

    NAME is a benchmark; all run when none is named. Figures go to bench/results. They are not
    stable from one machine or one hour to the next: quote the ratios of one run.
    """
    contestants = _contestants(only)
    benchmarks = _benchmarks(names)
    if listing:
        _list(benchmarks, contestants)
        return
    options = Options(rounds or (1 if quick else 3), jobs, quick, server, deadline, settings)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    try:
        _warn_of_load()
        _prepare(benchmarks, contestants)
        about = _about(benchmarks, contestants, options)
        runs = run_all(benchmarks, contestants, options, _show_run)
    except KeyboardInterrupt:
        console.print("stopped: servers and workers are gone, nothing was kept")
        sys.exit(130)
    except (BenchError, subprocess.CalledProcessError, OSError) as error:
        raise click.ClickException(str(error)) from error
    summaries = [one for benchmark in benchmarks for one in report.summarise(benchmark, runs)]
    _show(benchmarks, summaries)
    target = json_file or RESULTS / f"{stamp}.json"
    _write(target, report.document(runs, summaries, **about))
    _plot(target, plots or RESULTS / stamp)


def _contestants(only: Sequence[str]) -> tuple[Contestant, ...]:
    everyone = all_contestants()
    chosen = tuple(one for one in everyone if not only or any(part in one.name for part in only))
    if not chosen:
        known = ", ".join(one.name for one in everyone)
        raise click.UsageError(f"no contestant's name contains {', '.join(only)}; known: {known}")
    return chosen


def _benchmarks(names: Sequence[str]) -> tuple[Benchmark, ...]:
    known = {benchmark.name: benchmark for benchmark in BENCHMARKS}
    if unknown := [name for name in names if name not in known]:
        raise click.UsageError(f"no benchmark {', '.join(unknown)}; known: {', '.join(known)}")
    return tuple(known[name] for name in dict.fromkeys(names)) or BENCHMARKS


def _list(benchmarks: Sequence[Benchmark], contestants: Sequence[Contestant]) -> None:
    for benchmark in benchmarks:
        console.print(f"[bold]{benchmark.name}[/]: {benchmark.help} ({benchmark.jobs:,} jobs)")
        for contestant in contestants:
            if benchmark.name in contestant.benchmarks:
                settings = [one for one in benchmark.settings if one in contestant.settings]
                console.print(f"  {contestant.name}  [dim]{' '.join(settings)}[/]")


def _warn_of_load() -> None:
    load, cores = psutil.getloadavg()[0], psutil.cpu_count() or 1
    if load > 0.3 * cores:
        console.print(
            f"[yellow]warning:[/] load is {load:.2f} on {cores} cores before anything ran: "
            "figures will be noisy; trust ratios only"
        )


def _used(contestants: Sequence[Contestant], benchmarks: Sequence[Benchmark]) -> list[str]:
    """The environments needed; the peers' one draws the plots too."""
    names = {benchmark.name for benchmark in benchmarks}
    used = {one.environment for one in contestants if names & set(one.benchmarks)}
    return sorted((used | {"peers"}) - {"own"})


def _prepare(benchmarks: Sequence[Benchmark], contestants: Sequence[Contestant]) -> None:
    environments.make(_used(contestants, benchmarks), console.print)


def _about(
    benchmarks: Sequence[Benchmark], contestants: Sequence[Contestant], options: Options
) -> dict[str, Any]:
    with (
        guarding() as guard,
        serving(options.server, guard.scratch, guard) as server,
    ):
        version = server.version()
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "server": version,
        "rounds": options.rounds,
        "quick": options.quick,
        "versions": {name: environments.freeze(name) for name in _used(contestants, benchmarks)},
        "benchmarks": [
            {
                "name": one.name,
                "help": one.help,
                "main": one.main,
                "heading": one.columns[one.main],
                "baseline": one.baseline,
                "higher_is_better": one.higher_is_better,
            }
            for one in benchmarks
        ],
    }


def _show_run(run: Run, number: int, total: int) -> None:
    benchmark = next(one for one in BENCHMARKS if one.name == run.benchmark)
    shown = [
        f"{report.number(run.figures[name])} {heading}"
        for name, heading in benchmark.columns.items()
        if name in run.figures
    ]
    what = ", ".join(shown[:3]) or f"[dim]skipped: {escape(run.skipped)}[/]"
    if run.failure:
        what = f"[red]failed:[/] {escape(run.failure)}"
    console.print(
        f"{number}/{total} {run.benchmark} · {run.setting} · [bold]{run.contestant}[/]"
        f" · round {run.round}: {what}"
    )


def _show(benchmarks: Sequence[Benchmark], summaries: Sequence[report.Summary]) -> None:
    for benchmark in benchmarks:
        ours = [one for one in summaries if one.benchmark == benchmark.name]
        for setting in dict.fromkeys(one.setting for one in ours):
            console.print()
            console.print(report.table(benchmark, setting, ours))
        for one in ours:
            if outcome := report.outcome(one):
                console.print(f"{one.contestant} ({one.setting}) {escape(outcome)}")
    console.print("\nMedians. CPU, server CPU and broker commands are per job.")
    console.print("Absolute figures differ from hour to hour: quote ratios.")


def _write(path: Path, document: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1))
    console.print(f"figures: {path}")


def _plot(path: Path, folder: Path) -> None:
    python = ENVIRONMENTS / "peers" / "bin" / "python"
    command = [str(python), "-m", "bench.plots", str(path.resolve()), str(folder.resolve())]
    drawn = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    console.print(f"plots: {folder}" if not drawn.returncode else f"no plots: {drawn.stderr}")


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    # Questions to a database have no contestants and options of their own.
    if sys.argv[1:2] == ["log-queries"]:
        log_queries(sys.argv[2:], prog_name="python -m bench log-queries")
    main(prog_name="python -m bench")
