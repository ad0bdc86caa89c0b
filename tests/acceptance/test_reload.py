"""``cloche up --reload``: changed code is loaded; broken code is not, and that is said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cloche.testing import wait_until
from tests.acceptance.stack import Stack

CODE = """
from cloche import create_app

app = create_app("reloaded")


@app.task(name="tasks.reloaded.version")
def version():
    return {version}
"""
#: A client that does not import the project, which may be broken.
ASK = (
    "from cloche import create_app; app = create_app('client');"
    "print(app.send_task('tasks.reloaded.version').get(timeout=30))"
)


class Development(Stack):
    def _is_ready(self, times: int) -> bool:
        return self.output.count(self.ready) >= times  # without pages

    def write(self, text: str) -> None:
        (self.directory / "proj.py").write_text(text)

    def version(self) -> str:
        return subprocess.run(
            [sys.executable, "-c", ASK],
            cwd=self.directory,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout.strip()

    def wait_says(self, words: str) -> None:
        wait_until(lambda: words in self.output, f"{words!r} in {self.output}", 60)


def test_changed_code_runs_and_broken_code_does_not(tmp_path: Path) -> None:
    lean = {
        "CLOCHE_SERVICE__ENABLED": "false",
        "CLOCHE_DASHBOARD__ENABLED": "false",
        "CLOCHE_WORKERS": '{"one": {"concurrency": 1}}',
    }
    (tmp_path / "proj.py").write_text(CODE.format(version=1))
    with Development(tmp_path, "-A", "proj", "--reload", environ=lean) as stack:
        assert stack.version() == "1"
        stack.write(CODE.format(version=2))
        stack.wait_says("proj.py changed: one, beat start anew")
        wait_until(lambda: stack.version() == "2", "the new code", 60)
        wait_until(lambda: stack.output.count("the scheduler leads") == 2, "the scheduler", 60)

        stack.write(CODE.format(version="(3"))
        stack.wait_says("proj.py changed, and what runs goes on unchanged: proj.py:")
        assert "SyntaxError: '(' was never closed" in stack.output
        assert stack.version() == "2"

        stack.write("import nothing_of_that_name\n")
        stack.wait_says("importing the Celery application 'proj' failed")
        assert "No module named 'nothing_of_that_name'" in stack.output
        assert stack.version() == "2"

        stack.write(CODE.format(version=4))
        wait_until(lambda: stack.version() == "4", "the mended code", 60)
