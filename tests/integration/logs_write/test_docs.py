"""docs/execution-logs.md does what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from cloche.logs.write.shipper import WRITE
from cloche.testing import BrokerProcess, wait_until
from tests.integration.logs_write.conftest import Make

PAGE = (Path(__file__).parents[3] / "docs" / "execution-logs.md").read_text()


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S)
    assert found is not None
    return found[1]


def test_the_example_logs_and_the_line_of_another_program_is_stored(
    make_stack: Make, broker: BrokerProcess
) -> None:
    stack = make_stack(broker.url)
    stack.worker()
    done = subprocess.run(
        [sys.executable, "-c", block("python")],
        env=stack.environ,
        cwd=stack.directory,
        capture_output=True,
        text=True,
        check=True,
    )
    line = block("json")
    stack.app.send_task(WRITE, [line], queue="logs", ignore_result=True)
    wait_until(lambda: stack.rows() == 2, "both rows", 30)
    assert stack.of_run("r-1") == ["12 steps planned", "12 steps planned"]
    assert stack.letters() == {}
    assert re.match(r"[0-9a-f]{8}-[0-9a-f]{4}-7", done.stdout)
