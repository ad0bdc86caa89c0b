"""Tables of the command line on terminals of any width, with texts of any kind."""

from __future__ import annotations

import os
import shutil
import sys

import pytest
from rich.cells import cell_len

from cloche.cli.table import columns, write_table

ROWS = [
    {"name": "生成任务.学习路线图", "state": "ready", "note": "\x1b[2J\u202egpj"},
    {"name": "nightly-cleanup-of-everything-there-is", "state": "crash-loop", "note": "-"},
]


def written(
    width: int | None, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch
) -> list[str]:
    patch.setenv("NO_COLOR", "1")
    patch.setattr(sys.stdout, "isatty", lambda: width is not None)
    patch.setattr(shutil, "get_terminal_size", lambda **_: os.terminal_size((width or 80, 24)))
    write_table(columns("name state note"), ROWS)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("width", [3, 10, 20, 40, 80, 200])
def test_no_line_is_longer_than_the_terminal(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = written(width, capsys, monkeypatch)
    assert max(map(cell_len, lines)) <= max(width, 4)
    assert len(lines) == 3


def test_two_columns_stay_and_cells_are_cut(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert written(30, capsys, monkeypatch) == [
        "NAME                STATE",
        "生成任务.学习路线…  ready",
        "nightly-cleanup-o…  crash-loop",
    ]


def test_columns_of_wide_letters_are_straight_and_nothing_is_hidden(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    head, first, second = written(None, capsys, monkeypatch)
    assert first.endswith(r"ready       \x1b[2J\u202egpj")
    at = cell_len(second.partition("crash-loop")[0])
    assert cell_len(first.partition("ready")[0]) == at == head.index("STATE")
