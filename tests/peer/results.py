"""What each test did in each configuration, kept in a JSON file that runs add to."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Url = Literal["stock", "ours"]
URLS: tuple[Url, ...] = ("stock", "ours")


@dataclass(frozen=True, slots=True)
class Configuration:
    """A pool, and whose broker and result URLs."""

    pool: str
    url: Url

    def __str__(self) -> str:
        return f"{self.pool} {self.url}"


@dataclass(frozen=True, slots=True)
class Result:
    """``outcome``: passed, failed, skipped, xfailed or hung. ``why``: its traceback or reason.

    ``seconds`` include set-up and teardown; ``revision`` is the commit that ran.
    """

    outcome: str
    seconds: float = 0.0
    reruns: int = 0
    why: str | None = None
    revision: str = ""

    @property
    def passed(self) -> bool:
        return self.outcome == "passed"

    @property
    def reason(self) -> str:
        """The line of ``why`` that says most."""
        lines = [line.strip() for line in (self.why or "").splitlines() if line.strip()]
        errors = [line.removeprefix("E ").strip() for line in lines if line.startswith("E ")]
        return (errors or lines or [""])[0][:160]


class Attempt:
    """One test's events, phase after phase, rerun after rerun, until its result."""

    def __init__(self) -> None:
        self.outcome = "passed"
        self.seconds = 0.0
        self.reruns = 0
        self.rerunning = False
        self.why: str | None = None

    def take(self, event: Mapping[str, Any]) -> None:
        """Add what pytest reported of a phase (set-up, call, teardown, subtest)."""
        self.seconds += event["seconds"]
        outcome = event["outcome"]
        if outcome == "rerun":
            self.reruns += 1
            self.rerunning = True
            self.outcome, self.why = "passed", None
        elif outcome == "failed":
            self.outcome, self.why = "failed", self.why or event["why"]
        elif outcome == "skipped" and self.outcome != "failed":
            expected = event["expected"] is not None
            self.outcome = "xfailed" if expected else "skipped"
            self.why = event["expected"] if expected else event["why"]

    def result(self, revision: str) -> Result:
        return Result(self.outcome, round(self.seconds, 1), self.reruns, self.why, revision)


class Results:
    """The file. Threads may record at the same time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        known = json.loads(path.read_text()) if path.exists() else {}
        self._tests: dict[str, dict[str, Result]] = {
            configuration: {test: Result(**result) for test, result in tests.items()}
            for configuration, tests in known.items()
        }

    def record(self, configuration: Configuration, test: str, result: Result) -> None:
        """Keep it, in place of what an earlier run found."""
        with self._lock:
            self._tests.setdefault(str(configuration), {})[test] = result
            self._write()

    def of(self, configuration: Configuration) -> Mapping[str, Result]:
        """Every test's latest result."""
        return self._tests.get(str(configuration), {})

    def _write(self) -> None:
        text = json.dumps(
            {
                configuration: {test: asdict(result) for test, result in tests.items()}
                for configuration, tests in self._tests.items()
            },
            indent=1,
        )
        new = self._path.with_suffix(".new")
        new.write_text(text)
        os.replace(new, self._path)
