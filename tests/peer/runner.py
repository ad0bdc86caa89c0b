"""Runs tests of one file in one configuration: a pytest process, watched, with its own Valkey."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloche.testing import BrokerProcess
from tests.peer.inside.environment import PREFIX
from tests.peer.results import Attempt, Configuration, Result
from tests.peer.source import Source

#: Seconds a process may stay silent beyond a test's own limit before it is killed.
GRACE = 60
#: On the path of a suite's process, whose own ``tests`` hides ours: ``inside``.
PLUGINS = Path(__file__).parent

Told = Callable[[str, Result], None]


@dataclass(frozen=True, slots=True)
class Limits:
    """``timeout`` of a test in seconds, its reruns included; ``reruns`` of what the suite calls
    flaky (its own number is 5)."""

    timeout: float
    reruns: int


@dataclass(frozen=True, slots=True)
class Runner:
    """How to run a suite; ``arguments`` are pytest's, ``revision`` goes into the results.

    ``stop`` ends what runs: ``run`` then raises CancelledError.
    """

    source: Source
    limits: Limits
    arguments: Sequence[str]
    revision: str
    stop: threading.Event = field(default_factory=threading.Event)

    def collect(self) -> list[str]:
        """The tests that the arguments choose. Raises SystemExit where pytest refuses them."""
        suite = self.source.suite
        with _Pytest(self, Configuration(suite.pools[0], "stock"), None) as run:
            run.start(*suite.tests, "--collect-only", *self.arguments)
            events = list(run.events())
            found: list[str] = next((e["collected"] for e in events if "collected" in e), [])
            if run.code not in (0, 5):
                raise SystemExit(
                    f"peer-suite: pytest could not collect the tests of {suite.name}\n{run.output}"
                )
            return found

    def run(self, configuration: Configuration, tests: Sequence[str], told: Told) -> None:
        """Run ``tests``, of one file; ``told`` gets each result as it comes.

        A process that hangs or dies costs the test it was at, and the others go on in a new one.
        """
        left = list(tests)
        while left:
            before = len(left)
            for test, result in self._process(configuration, left):
                if test in left:
                    left.remove(test)
                told(test, result)
            if len(left) == before:
                raise RuntimeError(f"{configuration}: no result of {left}")

    def _process(
        self, configuration: Configuration, tests: Sequence[str]
    ) -> Iterator[tuple[str, Result]]:
        with _Pytest(self, configuration, tests) as run:
            run.start(tests[0].partition("::")[0])
            current, attempt = tests[0], Attempt()
            unfinished = True
            for event in run.events():
                if event.get("phase") == "start":
                    if not attempt.rerunning:
                        current, attempt, unfinished = event["test"], Attempt(), True
                    attempt.rerunning = False
                elif event.get("phase") == "collect":
                    attempt.take(event | {"seconds": 0, "expected": None})
                elif "test" in event:
                    attempt.take(event)
                elif "finished" in event and not attempt.rerunning:
                    yield current, attempt.result(self.revision)
                    unfinished = False
            if unfinished:
                yield current, self._lost(run, attempt)

    def _lost(self, run: _Pytest, attempt: Attempt) -> Result:
        """What is said of the test that a process hung or died at (or could not import)."""
        if attempt.outcome != "passed":
            return attempt.result(self.revision)
        outcome = "hung" if run.hung else "failed"
        return Result(outcome, attempt.seconds, attempt.reruns, run.output, self.revision)


class _Pytest:
    """One pytest process in a suite's checkout."""

    def __init__(
        self, runner: Runner, configuration: Configuration, tests: Sequence[str] | None
    ) -> None:
        self._runner = runner
        self._configuration = configuration
        self._tests = tests
        self._broker = BrokerProcess()
        self._directory = tempfile.TemporaryDirectory(prefix="cloche-peer-")
        self._process: subprocess.Popen[bytes] | None = None
        self.hung = False

    def __enter__(self) -> _Pytest:
        self._broker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()
        self._broker.close()
        self._directory.cleanup()

    @property
    def output(self) -> str:
        """The end of what it wrote."""
        return (self._path / "output").read_text(errors="replace")[-4000:]

    @property
    def code(self) -> int | None:
        return self._process.poll() if self._process else None

    @property
    def _path(self) -> Path:
        return Path(self._directory.name)

    def start(self, *arguments: str) -> None:
        (self._path / "wanted").write_text(json.dumps(self._tests))
        (self._path / "events").touch()
        source = self._runner.source
        plugins = ("-p", "inside.plugin", "-p", f"inside.{source.suite.adapter}")
        options = ("-p", "no:cacheprovider", "-o", "addopts=")
        with (self._path / "output").open("wb") as output:
            self._process = subprocess.Popen(
                [source.python, "-m", "pytest", *plugins, *options, *arguments],
                cwd=source.checkout,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # its pool's processes are killed with it
            )

    def events(self) -> Iterator[dict[str, Any]]:
        """What the plugin tells, until the process ends or has been silent for too long."""
        silence = self._runner.limits.timeout + GRACE
        deadline = time.monotonic() + silence
        with (self._path / "events").open() as lines:
            while True:
                if self._runner.stop.is_set():
                    raise CancelledError
                ended = self.code is not None
                for line in lines:
                    deadline = time.monotonic() + silence
                    yield json.loads(line)
                if ended:
                    return
                if time.monotonic() > deadline:
                    self.hung = True
                    self._kill()
                time.sleep(0.1)

    def _kill(self) -> None:
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _environment(self) -> dict[str, str]:
        stock = self._broker.url
        url = stock if self._configuration.url == "stock" else f"cloche+{stock}"
        limits = self._runner.limits
        return os.environ | {
            "TEST_BROKER": url,
            "TEST_BACKEND": url,
            "REDIS_HOST": "127.0.0.1",
            "REDIS_PORT": str(self._broker.port),  # Celery's
            "REDIS_6379_TCP": str(self._broker.port),  # kombu's
            "WORKER_LOGLEVEL": "INFO",  # some tests read the worker's log
            "PATH": f"{self._runner.source.python.parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(PLUGINS),
            "PYTHONDONTWRITEBYTECODE": "1",
            PREFIX + "URL": url,
            PREFIX + "POOL": self._configuration.pool,
            PREFIX + "TIMEOUT": str(limits.timeout),
            PREFIX + "RERUNS": str(limits.reruns),
            PREFIX + "WANTED": str(self._path / "wanted"),
            PREFIX + "EVENTS": str(self._path / "events"),
        }
