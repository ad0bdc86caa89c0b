"""Settings from ``cloche.toml`` and from ``[tool.cloche]`` of ``pyproject.toml``."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from cloche.settings.keys import Path_
from cloche.settings.origin import Origin
from cloche.settings.reading import Reading
from cloche.settings.toml_lines import key_lines

_AT_LINE = re.compile(r" \(at line (\d+), column \d+\)$")


def read_cloche_toml(reading: Reading, directory: Path) -> None:
    """All of ``cloche.toml``."""
    _read(reading, directory / "cloche.toml", ())


def read_pyproject(reading: Reading, directory: Path) -> None:
    """``[tool.cloche]``; a ``pyproject.toml`` that does not mention us is none of our business."""
    _read(reading, directory / "pyproject.toml", ("tool", "cloche"))


def _read(reading: Reading, file: Path, table: Path_) -> None:
    text = _text(reading, file, table)
    if text is None or (table and table[-1] not in text):
        return
    content = _parse(reading, file.name, text)
    for name in table:
        content = content.get(name, {}) if isinstance(content, dict) else {}
    lines = key_lines(text) if content != {} else {}

    def where(path: Path_) -> Origin:
        spot = (*table, *path)
        while spot and spot not in lines:
            spot = spot[:-1]
        return Origin("file", f"{file.name}:{lines.get(spot, 1)}")

    if isinstance(content, dict):
        reading.take((), content, where)
    else:
        reading.problem(where(()), "tool.cloche is a table of settings: write [tool.cloche]")


def _text(reading: Reading, file: Path, table: Path_) -> str | None:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        problem = f"{file.name}: the file cannot be read: {error}"
        (reading.unread if table else reading.problems).append(problem)
        return None


def _parse(reading: Reading, name: str, text: str) -> Any:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        words = str(error)
        match = _AT_LINE.search(words)
        line = int(match[1]) if match else text.count("\n") + 1  # "(at end of document)"
        reading.problem(
            Origin("file", f"{name}:{line}"), f"not valid TOML: {_AT_LINE.sub('', words)}"
        )
        return {}
