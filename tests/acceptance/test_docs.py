"""What README, docs and --help show really works."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from cloche.cli import cloche
from tests.acceptance.stack import Stack

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_CONSOLE = re.compile(r"^```console\n(.*?)^```", re.M | re.S)


def commands(text: str) -> Iterator[list[str]]:
    """Words of every ``$ cloche …`` line, comments and continuation lines aside."""
    for line in text.replace("\\\n", " ").splitlines():
        found = re.match(r"\s*\$ (cloche .*)", line)
        if found and "| " not in found[1]:
            yield shlex.split(found[1].split(" >")[0], comments=True)[1:]


def documented() -> Iterator[tuple[str, list[str]]]:
    for document in DOCUMENTS:
        for block in _CONSOLE.findall(document.read_text()):
            yield from ((document.name, words) for words in commands(block))


def every_command(
    group: click.Group, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from every_command(command, (*path, name))
        else:
            yield (*path, name), command


def parse(command: click.Command, words: list[str]) -> None:
    """Raises click.ClickException if the options or arguments are not taken."""
    while isinstance(command, click.Group):
        name, found, words = command.resolve_command(click.Context(command), words)
        assert found is not None, name
        command = found
    command.make_context(command.name, list(words), resilient_parsing=False)


@pytest.mark.parametrize(
    ("where", "words"), [pytest.param(*found, id=" ".join(found[1])[:60]) for found in documented()]
)
def test_every_documented_command_is_understood(where: str, words: list[str]) -> None:
    parse(cloche, words)


@pytest.mark.parametrize(
    ("path", "command"),
    [pytest.param(*found, id=" ".join(found[0])) for found in every_command(cloche)],
)
def test_every_command_has_examples_that_are_understood(
    path: tuple[str, ...], command: click.Command
) -> None:
    examples = list(commands(command.help or ""))
    assert examples, f"cloche {' '.join(path)} --help shows no example"
    for words in examples:
        assert words[: len(path)] == list(path)
        parse(cloche, words)


def test_the_ten_lines_of_the_readme_are_the_example() -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    example = (ROOT / "examples" / "hello" / "hello.py").read_text()
    assert example.endswith(code)


def test_the_ten_lines_of_the_readme_run(tmp_path: Path) -> None:
    (tmp_path / "hello.py").write_text((ROOT / "examples" / "hello" / "hello.py").read_text())
    (line,) = re.findall(r'python -c "(.*)"', (ROOT / "README.md").read_text())
    with Stack(tmp_path, "-A", "hello") as stack:
        done = subprocess.run(
            [sys.executable, "-c", line],
            cwd=tmp_path,
            env=stack.environ,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.stdout == "Hello, you!\n", done.stderr


@pytest.mark.parametrize(
    ("path", "command"),
    [pytest.param(*found, id=" ".join(found[0])) for found in every_command(cloche)],
)
def test_every_help_tells_its_exit_codes_and_fits_a_terminal(
    path: tuple[str, ...], command: click.Command
) -> None:
    name = " ".join(("cloche", *path))
    told = command.get_help(click.Context(command, info_name=name, terminal_width=80))
    assert "Exit codes: 0" in told or path == ("logs", "tail"), told
    assert [line for line in told.splitlines() if len(line) > 80] == []
