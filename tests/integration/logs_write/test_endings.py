"""However a process ends, what it said until then is kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

_PROJECT = """\
import atexit, multiprocessing as mp, os, signal, sys, threading, time
from concurrent.futures import ProcessPoolExecutor
import billiard
from cloche import ExecutionLogger, create_app

log = ExecutionLogger(create_app("ends"))

def work(name):
    for number in range(30):
        log.info("test", name, str(number))

class Doomed:
    def __del__(self):
        work("destructor")
"""

_WAYS = {
    "Process": "p = mp.get_context('{how}').Process(target=work, args=('it',));"
    " p.start(); p.join()",
    "Pool": "p = mp.get_context('{how}').Pool(1); p.map(work, ['it']); p.close(); p.join()",
    "executor": "with ProcessPoolExecutor(1, mp_context=mp.get_context('{how}')) as e:"
    " list(e.map(work, ['it']))",
}


def _records(directory: Path, script: str) -> dict[str, int]:
    """Runs ``script`` with the broker away; how many records of each step lie on disk."""
    (directory / "cloche.toml").write_text('[broker]\nurl = "redis://127.0.0.1:1/0"\n')
    (directory / "ends.py").write_text(_PROJECT)
    (directory / "main.py").write_text(f"from ends import *\n{script}\n")
    environ = {**os.environ, "PYTHONPATH": str(directory)}
    ended = subprocess.run(
        [sys.executable, "main.py"], cwd=directory, env=environ, capture_output=True, timeout=120
    )
    assert b"Traceback" not in ended.stderr, ended.stderr.decode()
    found: dict[str, int] = {}
    for file in (directory / ".cloche/execution-log/spool").rglob("*.jsonl"):
        for line in file.read_bytes().splitlines():
            step = orjson.loads(line)["step"]
            found[step] = found.get(step, 0) + 1
    return found


@pytest.mark.parametrize("how", ["fork", "forkserver", "spawn"])
def test_children_of_multiprocessing_keep_what_they_said(tmp_path: Path, how: str) -> None:
    lines = []
    for name, way in _WAYS.items():
        lines.append("    " + way.format(how=how).replace("'it'", repr(name)))
    script = "if __name__ == '__main__':\n    work('parent')\n" + "\n".join(lines)
    assert _records(tmp_path, script) == dict.fromkeys(["parent", *_WAYS], 30)


def test_what_is_said_at_the_very_end_is_kept(tmp_path: Path) -> None:
    """By a fork that ends by itself, billiard's child, exit handlers of before and after ours, a
    destructor at the end of the interpreter."""
    script = """\
doomed = Doomed()
atexit.register(work, "exit handler")
p = billiard.Process(target=work, args=("billiard",)); p.start(); p.join()
if not os.fork():
    work("fork")
    sys.exit()
os.wait()
sys.modules["kept"] = doomed
"""
    expected = ["exit handler", "billiard", "fork", "destructor"]
    found = _records(tmp_path, "import atexit\n" + script)
    # The fork runs the exit handler and the destructor, too: it is a copy.
    assert {name: found.get(name, 0) % 30 == 0 < found.get(name, 0) for name in expected} == (
        dict.fromkeys(expected, True)
    ), found


@pytest.mark.parametrize("number", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_signals_take_nothing_with_them(tmp_path: Path, number: str) -> None:
    script = f"""\
work("it")
try:
    os.kill(os.getpid(), signal.{number}); time.sleep(30)
except KeyboardInterrupt:
    pass
"""
    assert _records(tmp_path, script) == {"it": 30}
