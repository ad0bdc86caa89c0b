"""The contestants' virtual environments: made here, kept in .bench-venv, remade when asked anew.

``NAME.txt`` says what is wanted, ``NAME.lock`` which versions that is. Peers that ask for
different versions of redis-py have an environment each, so that each runs on what it supports.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from bench.contestant import ENVIRONMENTS
from bench.errors import BenchError

_LISTS = Path(__file__).parent


def make(names: Iterable[str], say: Callable[[str], None]) -> None:
    """Make the environments that are missing or older than their lists."""
    for name in names:
        if not _is_current(name):
            say(f"making .bench-venv/{name} (a minute, once)")
            _make(name)


def freeze(name: str) -> dict[str, str]:
    """The versions installed in one."""
    listed = _pip(name, "freeze").splitlines()
    return dict(line.split("==", 1) for line in listed if "==" in line)


def _wanted(name: str) -> Path:
    return _LISTS / f"{name}.txt"


def _locked(name: str) -> Path:
    return _LISTS / f"{name}.lock"


def _stamp(name: str) -> str:
    lists = _wanted(name).read_bytes() + _locked(name).read_bytes()
    return hashlib.sha256(lists + sys.version.encode()).hexdigest()


def _is_current(name: str) -> bool:
    stamp = ENVIRONMENTS / name / ".made-from"
    return stamp.exists() and stamp.read_text() == _stamp(name)


def _make(name: str) -> None:
    folder = ENVIRONMENTS / name
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    lists = ["--requirement", str(_wanted(name)), "--constraint", str(_locked(name))]
    _pip(name, "install", "--quiet", *lists)
    (folder / ".made-from").write_text(_stamp(name))


def _pip(name: str, *arguments: str) -> str:
    python = str(ENVIRONMENTS / name / "bin" / "python")
    command = [python, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"pip {arguments[0]} failed in .bench-venv/{name}:\n{done.stderr}")
    return done.stdout
