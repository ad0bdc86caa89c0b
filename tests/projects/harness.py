"""A project of somebody's, its own producers and workers, and Cloche beside them.

The projects lie in directories here and know nothing of Cloche; each test works on a copy.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cloche.testing import clean_environ, free_port, wait_until
from tests import commands

HERE = Path(__file__).parent


class Project:
    """A copy of the project ``name`` (a directory here) whose application is ``app``."""

    def __init__(self, name: str, app: str, directory: Path, environ: Mapping[str, str]) -> None:
        shutil.copytree(HERE / name, directory, dirs_exist_ok=True)
        self.app = app
        self.directory = directory
        self.environ = clean_environ(
            CLOCHE_SERVICE__PORT=str(free_port()),
            CLOCHE_DASHBOARD__PORT=str(free_port()),
            PYTHONDONTWRITEBYTECODE="1",
            C_FORCE_ROOT="1",
            **environ,
        )
        self._stock: list[subprocess.Popen[bytes]] = []

    def run(self, *command: str, code: int = 0, timeout: float = 90) -> str:
        """What a command prints in the project's directory; it must end with ``code``."""
        return self._told(
            subprocess.run(
                [sys.executable, *command],
                cwd=self.directory,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout,
            ),
            code,
        )

    def _told(self, done: subprocess.CompletedProcess[str], code: int) -> str:
        found = f"{done.args}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == code, f"{found}\n{self.logs()}"
        return done.stdout + (done.stderr if code else "")

    def cloche(self, *words: str, code: int = 0, named: bool = True) -> str:
        """``cloche WORDS -A app``; without ``-A`` if not ``named``."""
        app = ("-A", self.app) if named else ()
        return self._told(commands.cloche(*words, *app, cwd=self.directory, env=self.environ), code)

    def json(self, *words: str) -> Any:
        return json.loads(self.cloche(*words, "--json"))

    def python(self, code: str) -> str:
        """Run the project's own code, which knows nothing of Cloche."""
        return self.run("-W", "ignore", "-c", code).strip()

    def start_stock_worker(self, *words: str) -> None:
        """``celery -A app worker`` beside everything else; returns when it consumes."""
        log = self.directory / f"stock-{len(self._stock)}.log"
        with log.open("wb") as output:
            command = ["-m", "celery", "-A", self.app, "worker", "-c", "1", "-l", "INFO", *words]
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=self.directory,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._stock.append(process)
        wait_until(lambda: " ready." in log.read_text(), f"the stock worker of {self.app}", 60)

    def stop_stock_workers(self) -> None:
        for process in self._stock:
            process.terminate()
        for process in self._stock:
            process.wait(30)
        self._stock.clear()

    def logs(self) -> str:
        """The last lines of every process that Cloche keeps here, for a failure's text."""
        files = sorted((self.directory / ".cloche" / "logs").glob("*.log"))
        return "\n".join(f"== {file.name}\n{file.read_text()[-1500:]}" for file in files)

    def close(self) -> None:
        for process in self._stock:
            process.kill()
            process.wait(10)
        if (self.directory / ".cloche").exists():
            commands.cloche("stop", "--now", cwd=self.directory, env=self.environ)
