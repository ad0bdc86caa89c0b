"""docs/architecture.md says what is: rooms, files, layers and places that are there."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

import cloche
from tests.unit.test_layers import FRONT, LAYERS, ROOT

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
PAGE = (DOCS / "architecture.md").read_text()
#: A path in code quotes; those without a first ``src`` are below the package.
_PATH = re.compile(r"`((?:[\w.]+/)*(?:[\w.]+/|[\w.]+\.(?:py|lua|html)))`")


def section(title: str) -> str:
    """The text below ``## title``."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    assert found is not None, title
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of every table row, heads and rules left out."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    heads = {number - 1 for number, line in enumerate(text.splitlines()) if line.startswith("|--")}
    first = {text.splitlines()[number] for number in heads}
    return [row for line, row in zip(lines, cells, strict=True) if line not in first]


def exists(path: str) -> bool:
    return any((place / path).exists() for place in (REPOSITORY, ROOT, DOCS))


def present(noun: str) -> bool:
    return (ROOT / noun / "__init__.py").exists() or (ROOT / f"{noun}.py").exists()


def test_every_file_that_is_named_is_there() -> None:
    named = _PATH.findall(PAGE)
    assert len(named) > 100
    assert [path for path in named if not exists(path)] == []


def test_every_room_is_named_once_and_no_other() -> None:
    named = [row[0].strip("`").rstrip("/").removesuffix(".py") for row in rows(section("Rooms"))]
    there = {
        path.stem if path.suffix == ".py" else path.name
        for path in ROOT.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert sorted(named) == sorted(there - FRONT)


def test_the_layers_are_those_that_are_enforced() -> None:
    found = re.search(r"^```layers\n(.*?)^```", PAGE, re.M | re.S)
    assert found is not None
    told = [frozenset(line.split()) for line in reversed(found[1].splitlines())]
    enforced = [frozenset(filter(present, layer)) for layer in LAYERS]
    assert told == [layer for layer in enforced if layer]


def test_what_is_replaced_of_celery_names_a_file_and_a_reason() -> None:
    replaced = rows(section("What Cloche changes of Celery"))
    assert len(replaced) > 20
    for what, file, why in replaced:
        assert what
        assert _PATH.search(file), what
        assert why, what


#: What replaces or wraps something of Celery's, kombu's or redis-py's, as it is written.
_REPLACES = re.compile(
    r"""^\s*(?:
        (?:stock|celery|signals|state|app(?!\.conf)|Context|Task|task_class|pool)
            (?:\.\w+)*\.(?!cloche_|_cloche_|conf\b|__dict__)\w+\s=\s
        | handlers\[ | TRANSPORT_ALIASES\. | setattr\((?:module|type\(task\)|task)
        | \S+\.__class__\s=\s | \w+\.__ident_func__\s=\s | app\.steps\[ | .*\.addFilter\(
    )""",
    re.M | re.X,
)


def test_no_file_replaces_something_of_celerys_unnamed() -> None:
    """Not proof, a net: assignments to attributes of Celery's modules, applications and tasks."""
    named = section("What Cloche changes of Celery")
    rooms = ("aio", "app", "broker", "launch", "worker")
    below = [path for room in rooms for path in (ROOT / room).rglob("*.py")]
    found = {path for path in below if _REPLACES.search(path.read_text())}
    unnamed = sorted(str(path.relative_to(ROOT)) for path in found)
    assert [path for path in unnamed if f"src/cloche/{path}" not in named] == []


@pytest.mark.parametrize(
    ("change", "room", "places"),
    [pytest.param(*row, id=row[0][:40]) for row in rows(section("Where would this change go?"))],
)
def test_a_change_has_a_place(change: str, room: str, places: str) -> None:
    found = _PATH.findall(places)
    assert found, change
    assert found[0].startswith(f"src/cloche/{room.strip('`')}"), change
    assert all(map(exists, found)), change


def test_there_are_ten_changes() -> None:
    assert len(rows(section("Where would this change go?"))) == 10


def test_every_link_leads_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", PAGE)
    assert [target for target in targets if not (DOCS / target).exists()] == []
    assert "docs/architecture.md" in (REPOSITORY / "README.md").read_text()


def test_the_drawing_names_files_that_are_there() -> None:
    tree = ElementTree.parse(DOCS / "images" / "architecture.svg")
    texts = [node.text or "" for node in tree.iter("{http://www.w3.org/2000/svg}text")]
    words = [
        word for text in texts for word in text.split() if re.fullmatch(r"[\w/]+(/|\.py)", word)
    ]
    assert len(words) > 15
    broker = Path(cloche.__file__).parent / "broker"
    assert [word for word in words if not (exists(word) or (broker / word).exists())] == []
