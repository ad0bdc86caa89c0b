"""The benchmarks, in one list. To add one: a module with a function of a stage, and an entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.benchmarks import delayed, drain, idle, latency, logs, publish, sleepers, start
from bench.contestant import SETTINGS, Setting
from bench.figures import Figures
from bench.stage import Case, Stage

_JOB_COLUMNS = {
    "rate": "jobs/s",
    "cpu_us": "CPU µs",
    "server_cpu_us": "server µs",
    "commands": "commands",
    "reads": "reads",
    "rss_mib": "RSS MiB",
}
_DELAY_COLUMNS = {"p50_ms": "p50 ms", "p99_ms": "p99 ms", "worst_ms": "worst ms"}

_LOG_COLUMNS = {
    "rate": "rows/s",
    "p50_us": "log() p50 µs",
    "p99_us": "p99 µs",
    "async_p50_us": "in a loop p50",
    "async_p99_us": "p99",
    "producer_cpu_us": "producer CPU µs",
}

_START_COLUMNS = {"warm_s": "warm s", "cold_s": "first s"}


@dataclass(frozen=True)
class Benchmark:
    """What is measured, how it is shown, and with how many jobs."""

    name: str
    help: str
    measure: Callable[[Stage], Figures]
    slots: Callable[[Case], int]  # how many marks a run needs
    columns: dict[str, str]  # figure: heading; the first is the one that is compared
    baseline: str  # the contestant the others are compared with
    jobs: int
    higher_is_better: bool = True
    shares: bool = True  # whether slow contestants get fewer jobs, quick ones more
    settings: tuple[Setting, ...] = ("ignored",)

    @property
    def main(self) -> str:
        """The figure that is compared."""
        return next(iter(self.columns))


BENCHMARKS = (
    Benchmark(
        "drain",
        "no-op jobs queued beforehand, until the last has run",
        drain.measure,
        lambda case: case.jobs,
        _JOB_COLUMNS,
        "celery prefork -c 2",
        20_000,
        settings=SETTINGS,
    ),
    Benchmark(
        "sleepers",
        "jobs that wait 0.1 s without computing, queued beforehand",
        sleepers.measure,
        lambda case: case.jobs,
        _JOB_COLUMNS,
        "celery prefork -c 10, asyncio.run",
        10_000,
        settings=("ignored", "production"),
    ),
    Benchmark(
        "publish",
        "no-op jobs published from one process: one call each, and the batch call",
        publish.measure,
        lambda case: 1,
        {
            "rate": "jobs/s",
            "bulk_rate": "in batches/s",
            "cpu_us": "CPU µs",
            "commands": "commands",
        },
        "celery",
        10_000,
        settings=("ignored", "stored"),
    ),
    Benchmark(
        "latency",
        "from publish to the job's first line, on an idle worker",
        latency.measure,
        lambda case: latency.slots(case.jobs),
        _DELAY_COLUMNS,
        "celery prefork -c 2",
        500,
        higher_is_better=False,
        shares=False,
    ),
    Benchmark(
        "latency-busy",
        "the same while 1,000 other jobs of this worker sleep",
        latency.measure_busy,
        lambda case: latency.SLEEPERS + latency.slots(case.jobs),
        _DELAY_COLUMNS,
        "",
        500,
        higher_is_better=False,
    ),
    Benchmark(
        "idle",
        "10 workers with a queue each and nothing to do, for a minute",
        idle.measure,
        lambda case: idle.WORKERS,
        {
            "cpu_percent": "CPU % of a core",
            "workers_percent": "workers %",
            "server_percent": "server %",
            "commands_per_second": "commands/s",
            "rss_mib": "RSS MiB",
        },
        "celery prefork -c 1",
        idle.WORKERS,
        higher_is_better=False,
    ),
    Benchmark(
        "delayed",
        "jobs that wait an hour or more; of a tenth as many, how late they arrive and start",
        delayed.measure,
        delayed.slots,
        {
            "rate": "jobs/s",
            "server_mib": "server MiB",
            "worker_mib": "worker + MiB",
            "idle_server_percent": "server %",
            "revoke_ms": "revoke ms",
            "promoted": "promoted/s",
            "arrival_p50_ms": "p50 ms",
            "arrival_p99_ms": "p99 ms",
            "start_p50_ms": "start p50",
            "start_p99_ms": "start p99",
        },
        "",
        1_000_000,
    ),
    Benchmark(
        "start",
        "from the worker's command to its first job; first round and later ones",
        start.measure,
        lambda case: 1,
        _START_COLUMNS,
        "celery prefork -c 2",
        1,
        higher_is_better=False,
    ),
    Benchmark(
        "up",
        "from `cloche up` to its ready page; first round and later ones",
        start.measure_page,
        lambda case: 1,
        _START_COLUMNS,
        "",
        1,
        higher_is_better=False,
    ),
    Benchmark(
        "logs",
        "execution-log records from log() to their rows in PostgreSQL, one producer",
        logs.measure_postgresql,
        lambda case: 1,
        _LOG_COLUMNS,
        "bare COPY",
        100_000,
    ),
    Benchmark(
        "logs-sqlite",
        "the same to SQLite",
        logs.measure_sqlite,
        lambda case: 1,
        _LOG_COLUMNS,
        "bare executemany",
        100_000,
    ),
)
