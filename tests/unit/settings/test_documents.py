"""The documents that are written from the code agree with it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import cloche.errors
from cloche.errors import ClocheError
from cloche.settings import Settings, load
from cloche.settings.keys import catalogue
from cloche.settings.reference import defaults_markdown, markdown, template

DOCS = Path(__file__).parents[3] / "docs"


def test_the_reference_is_up_to_date() -> None:
    assert (DOCS / "settings.md").read_text() == markdown(), (
        "run: cloche config reference > docs/settings.md"
    )


def test_the_production_defaults_are_up_to_date() -> None:
    assert (DOCS / "defaults.md").read_text() == defaults_markdown(), (
        "run: cloche config reference --celery > docs/defaults.md"
    )


def test_the_exit_codes_are_those_of_the_errors() -> None:
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", (DOCS / "exit-codes.md").read_text(), re.M)
    errors = [
        value
        for value in vars(cloche.errors).values()
        if isinstance(value, type) and issubclass(value, ClocheError)
    ]
    assert {name: int(code) for code, name in rows} == {e.__name__: e.exit_code for e in errors}


def test_the_template_as_written_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "cloche.toml").write_text(template())
    assert load(environ={}, directory=tmp_path).changed() == ()


def test_every_line_of_the_template_can_be_taken_into_use(tmp_path: Path) -> None:
    text = re.sub(r"^# (?=\w+ = |\[)", "", template(), flags=re.M)
    (tmp_path / "cloche.toml").write_text(text)
    resolved = load(environ={}, directory=tmp_path)
    beat = resolved.settings.beat.model_copy(update={"schedules": {}})
    named = resolved.settings.model_copy(
        update={"families": Settings().families, "workers": {}, "beat": beat}
    )
    assert named == Settings()
    assert set(resolved.changed()) == {key.dotted.replace("*", "main") for key in catalogue()}
    assert tomllib.loads(text)["broker"]["url"] == "null"
