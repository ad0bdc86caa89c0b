"""The architecture, checked: imports point down, siblings stay strangers."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import cloche

ROOT = Path(cloche.__file__).parent

LAYERS: tuple[frozenset[str], ...] = tuple(
    frozenset(names.split())
    for names in (
        "process_local plain timestamps file_lock",
        "errors records backoff outages running",
        "settings",
        "broker process database",
        "worker",
        "aio",
        "health",
        "app history cluster logs",
        "tasks scripts testing",
        "launch doctor alerts metrics",
        "web terminal generate celery",
        "contrib",
        "cli",
    )
)
#: The package's front door gathers names from everywhere; nothing inside may import it.
FRONT = frozenset({"__init__", "__main__"})


def _modules() -> Iterator[Path]:
    yield from sorted(ROOT.rglob("*.py"))


def _noun(path: Path) -> str:
    """The architecture's name of a module: its package or file right below ``cloche``."""
    return path.relative_to(ROOT).with_suffix("").parts[0]


def _layer(noun: str) -> int:
    for number, nouns in enumerate(LAYERS):
        if noun in nouns:
            return number
    raise AssertionError(f"cloche.{noun} has no place in the layers of architecture.md")


def _own_imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, noun) of every import of a module of ours."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            module = node.module or ""
            names = [f"{module}.{a.name}" for a in node.names] if module == "cloche" else [module]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "cloche":
                yield node.lineno, parts[1] if len(parts) > 1 else "__init__"


def test_every_module_has_a_place_in_the_layers() -> None:
    for path in _modules():
        if _noun(path) not in FRONT:
            _layer(_noun(path))


def test_imports_point_down_and_siblings_stay_strangers() -> None:
    wrong = []
    for path in _modules():
        noun = _noun(path)
        if noun in FRONT:
            continue
        for line, target in _own_imports(ast.parse(path.read_text())):
            if target != noun and (target in FRONT or _layer(target) >= _layer(noun)):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports cloche.{target}")
    assert not wrong, "\n".join(wrong)


def test_no_module_of_ours_is_imported_inside_a_function() -> None:
    wrong = []
    for path in _modules():
        tree = ast.parse(path.read_text())
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                wrong += [
                    f"{path.relative_to(ROOT)}:{line} imports cloche.{target} in a function"
                    for line, target in _own_imports(function)
                ]
    assert not wrong, "\n".join(wrong)


def test_errors_is_the_only_file_of_errors() -> None:
    wrong = []
    for path in _modules():
        if _noun(path) == "errors":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and any(
                isinstance(base, ast.Name) and base.id.endswith("Error") for base in node.bases
            ):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert not wrong, "\n".join(wrong)
