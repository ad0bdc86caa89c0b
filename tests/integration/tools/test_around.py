"""Sentry, OpenTelemetry, celery-batches and own classes see every task, on every pool."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cloche.testing import clean_environ, wait_until

ROOT = Path(__file__).parents[3]
MODULE = "tests.integration.tools.watched"

pytestmark = pytest.mark.timeout(150)


class Sentry:
    """An address that takes what sentry-sdk sends, and keeps it."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        sentry = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                sentry.items += _envelope(body)
                self.send_response(200)
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.dsn = f"http://key@127.0.0.1:{self._server.server_port}/1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def transactions(self) -> list[dict[str, Any]]:
        """Of tasks, not of the producer."""
        return [one for one in self.items if str(one.get("transaction")).startswith("watched.")
                and one.get("type") == "transaction"]  # fmt: skip

    def errors(self) -> list[dict[str, Any]]:
        return [one for one in self.items if "exception" in one
                and one["transaction"].startswith("watched.")]  # fmt: skip

    def check_ins(self) -> set[tuple[str, str, str]]:
        """What its crons were told: check-in, schedule, status."""
        return {(one["check_in_id"], one["monitor_slug"], one["status"]) for one in self.items
                if "monitor_slug" in one}  # fmt: skip

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _envelope(body: bytes) -> list[dict[str, Any]]:
    """The payloads that are events, transactions or check-ins."""
    lines = body.split(b"\n")
    heads = [json.loads(line) for line in lines if line]
    return [payload for head, payload in pairwise(heads)
            if head.get("type") in ("event", "transaction", "check_in")]  # fmt: skip


@pytest.fixture
def sentry() -> Iterator[Sentry]:
    found = Sentry()
    yield found
    found.close()


class Watched:
    """A worker, what its producer printed, and what the two left in the ledger."""

    def __init__(self, url: str, directory: Path, pool: str, tool: str, dsn: str) -> None:
        self._directory = directory
        self._ledger, self.log = directory / "ledger", directory / "worker.log"
        self._environ = clean_environ(
            WATCHED_URL=f"cloche+{url}/0",
            WATCHED_LEDGER=str(self._ledger),
            WATCHED_TOOL=tool,
            WATCHED_DSN=dsn,
            CLOCHE_BROKER__URL=url,
            CLOCHE_BEAT__NAME=f"{pool}-{tool}",  # what was sent last is remembered by name
            PYTHONPATH=str(ROOT),
            PYTHONWARNINGS="ignore",
        )
        self._beat: subprocess.Popen[bytes] | None = None
        words = ("-A", MODULE, "-P", pool, "-c", "4", "--name", f"{pool}-{tool}")
        self.process = self._start("worker", *words)
        wait_until(self._ready, "the worker to be ready", 40)
        assert self.process.poll() is None, self.log.read_text()

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "cloche", *words],
                cwd=self._directory, env=self._environ, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def beat(self) -> None:
        """Start the scheduler as well, which sends two tasks."""
        self._beat = self._start("beat", "-A", MODULE)

    def _ready(self) -> bool:
        return " ready." in self.log.read_text() or self.process.poll() is not None

    def produce(self) -> tuple[str, list[str]]:
        """The producer's trace, and what came of each task."""
        done = subprocess.run(
            [sys.executable, "-m", MODULE],
            cwd=self._directory, env=self._environ, capture_output=True, text=True, timeout=100,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr + self.log.read_text()[-4000:]
        trace, outcomes = json.loads(done.stdout.splitlines()[-1])
        return trace, outcomes

    def notes(self, word: str) -> list[list[Any]]:
        lines = map(json.loads, self._ledger.read_text().splitlines())
        return [line[1:] for line in lines if line[0] == word]

    def stop(self) -> None:
        for process in filter(None, (self._beat, self.process)):
            process.terminate()
            assert process.wait(30) == 0, self.log.read_text()[-4000:]


OUTCOMES = ["1", "2", "ValueError(-1)"] * 2 + ["1"] * 3 + ["KeyError('x')", "0", "1", "2"]


def _own_classes_were_used(worker: Watched) -> None:
    names = ["watched.awaited", "watched.called"]
    assert sorted(worker.notes("around")) == [[name, True] for name in names]
    assert sorted(worker.notes("value")) == [[name, 1] for name in names]
    steps = [step for _, step in worker.notes("request")]
    assert steps == ["accepted", "failure"]
    assert worker.notes("batch") == [[[0, 1, 2]]]


@pytest.mark.parametrize(
    ("pool", "begun"),
    [
        ("prefork", "sentry"),
        ("threads", "worker_init"),
        ("solo", "celeryd_init"),
        ("threads", "sentry"),
        ("asyncio", "sentry"),
    ],
)
def test_sentry_sees_every_run_and_error_in_the_producers_trace(
    broker_url: str, tmp_path: Path, sentry: Sentry, pool: str, begun: str
) -> None:
    worker = Watched(broker_url.removesuffix("/0"), tmp_path, pool, begun, sentry.dsn)
    try:
        if begun == "sentry":  # where a worker begins, a scheduler's process does nothing
            worker.beat()
        trace, outcomes = worker.produce()
        assert outcomes == OUTCOMES
        _own_classes_were_used(worker)
        if begun == "sentry":
            wait_until(lambda: len(sentry.check_ins()) >= 4, "the check-ins of two schedules", 30)
            ends = {(name, status): one for one, name, status in sentry.check_ins()}
            assert ends.keys() == {
                ("works", "in_progress"), ("works", "ok"),
                ("fails", "in_progress"), ("fails", "error"),
            }  # fmt: skip
            assert ends["works", "in_progress"] == ends["works", "ok"]
            assert ends["fails", "in_progress"] == ends["fails", "error"]
    finally:
        worker.stop()  # sends what is left to send
    runs = Counter(
        {"watched.plain": 3, "watched.coroutine": 3, "watched.retried": 2}
        | dict.fromkeys(("watched.called", "watched.awaited", "watched.requested"), 1)
    )
    seen = sentry.transactions()
    assert Counter(one["transaction"] for one in seen) == runs
    assert {one["contexts"]["trace"]["trace_id"] for one in seen} == {trace}
    for one in seen:
        operations = [span["op"] for span in one["spans"]]
        assert operations.count("queue.process") == 1, one["transaction"]
        bodies = one["transaction"] in ("watched.plain", "watched.coroutine")
        assert operations.count("body") == bodies, "a span of a body is in its own transaction"
    errors = sentry.errors()
    assert sorted(
        (one["transaction"], one["exception"]["values"][-1]["type"]) for one in errors
    ) == [
        ("watched.coroutine", "ValueError"),
        ("watched.plain", "ValueError"),
        ("watched.requested", "KeyError"),
    ]
    assert {one["contexts"]["trace"]["trace_id"] for one in errors} == {trace}


@pytest.mark.parametrize("pool", ["threads", "asyncio"])
def test_opentelemetry_has_a_span_around_every_run_and_its_body(
    broker_url: str, tmp_path: Path, sentry: Sentry, pool: str
) -> None:
    worker = Watched(broker_url.removesuffix("/0"), tmp_path, pool, "telemetry", sentry.dsn)
    try:
        _, outcomes = worker.produce()
        assert outcomes == OUTCOMES
        _own_classes_were_used(worker)

        def runs() -> list[list[Any]]:
            return [one for one in worker.notes("span") if one[0].startswith("run/")]

        wait_until(lambda: len(runs()) >= 11, "a span of each run", 20)
    finally:
        worker.stop()
    states = Counter((name.removeprefix("run/watched."), state) for name, _, state in runs())
    assert states["plain", "ERROR"] == states["coroutine", "ERROR"] == 1
    assert states["plain", "UNSET"] == states["coroutine", "UNSET"] == 2
    assert states["retried", "UNSET"] == 2
    inside = {trace for (trace,) in worker.notes("trace")}
    assert inside <= {trace for _, trace, _ in runs()}, "the body is within its span"
    assert len(inside) == 6
