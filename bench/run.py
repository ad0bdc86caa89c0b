"""Runs benchmarks: rounds of interleaved contestants, each run on a stage of its own."""

from __future__ import annotations

import platform
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import redis

from bench.benchmarks import Benchmark
from bench.contestant import Contestant, Setting
from bench.errors import BenchError
from bench.figures import Figures
from bench.guard import Guard, guarding
from bench.stage import Case, staging

_FEWEST = 200  # jobs of a run, below which a rate says little


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    rounds: int = 3
    jobs: int | None = None  # instead of each benchmark's own number
    quick: bool = False
    server: str = "valkey"
    deadline: float = 180.0
    settings: tuple[Setting, ...] = ()  # none: all


@dataclass(frozen=True)
class Run:
    """One run of one contestant: its figures, or why there are none."""

    benchmark: str
    setting: Setting
    contestant: str
    round: int
    jobs: int
    load: float  # average of the last minute when it began
    figures: Figures = field(default_factory=dict)
    failure: str = ""
    skipped: str = ""


def plan(
    benchmark: Benchmark, contestants: Sequence[Contestant], options: Options
) -> Iterator[tuple[Contestant, Setting, int]]:
    """A B C A B C …: every contestant before the next round begins."""
    entrants = [one for one in contestants if benchmark.name in one.benchmarks]
    for number in range(1, options.rounds + 1):
        for setting in benchmark.settings:
            if options.settings and setting not in options.settings:
                continue
            for contestant in entrants:
                if setting in contestant.settings:
                    yield contestant, setting, number


def run_all(
    benchmarks: Sequence[Benchmark],
    contestants: Sequence[Contestant],
    options: Options,
    say: Callable[[Run, int, int], None],
) -> list[Run]:
    """Every planned run; ``say(run, number, total)`` after each. A failure stops no other."""
    planned = [
        (benchmark, *entry)
        for benchmark in benchmarks
        for entry in plan(benchmark, contestants, options)
    ]
    runs: list[Run] = []
    with guarding() as guard:
        for number, (benchmark, contestant, setting, round_) in enumerate(planned, 1):
            home = guard.scratch / f"home-{contestants.index(contestant)}"
            home.mkdir(exist_ok=True)
            case = Case(
                contestant=contestant,
                setting=setting,
                jobs=jobs_of(benchmark, contestant, options),
                round=round_,
                server=options.server,
                deadline=options.deadline,
                idle=10.0 if options.quick else 60.0,
                home=home,
            )
            runs.append(run_one(benchmark, case, guard))
            say(runs[-1], number, len(planned))
    return runs


def jobs_of(benchmark: Benchmark, contestant: Contestant, options: Options) -> int:
    """The jobs of one run: slow contestants get their share, at least 200."""
    asked = options.jobs or max(benchmark.jobs // (10 if options.quick else 1), 1)
    if benchmark.jobs < _FEWEST:  # not a number of jobs that could be less
        return benchmark.jobs
    if not benchmark.shares:
        return asked
    return max(int(asked * contestant.share), min(asked, _FEWEST))


def run_one(benchmark: Benchmark, case: Case, guard: Guard) -> Run:
    """One run on a stage of its own."""
    figures: Figures = {}
    failure = ""
    skipped = case.contestant.missing() or ""
    load = psutil.getloadavg()[0]
    if not skipped:
        try:
            with (
                tempfile.TemporaryDirectory(dir=guard.scratch) as folder,
                staging(case, benchmark.slots(case), Path(folder), guard) as stage,
            ):
                figures = benchmark.measure(stage)
        except (BenchError, OSError, redis.RedisError) as error:
            failure = str(error)
        except Exception as error:
            failure = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
    return Run(
        benchmark.name,
        case.setting,
        case.contestant.name,
        case.round,
        case.jobs,
        load,
        figures,
        failure,
        skipped,
    )


def machine() -> dict[str, object]:
    """What it ran on."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 1024**3, 1),
        "python": sys.version.split()[0],
        "load_average": list(psutil.getloadavg()),
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if not information.exists():
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    lines = information.read_text().splitlines()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
