"""Tests know the package by its public names alone, so that what is private can change without them."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SOURCES = sorted(TESTS.rglob("*.py"))
OF_NAMED_TUPLES = {"_fields", "_replace", "_asdict", "_make"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in OF_NAMED_TUPLES


def private_names(source: str) -> Iterator[str]:
    """Names of ssamba that begin with an underscore: imported, of an imported module, or in a patch."""
    tree = ast.parse(source)
    modules: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {name.asname or name.name for name in node.names if name.name.split(".")[0] == "ssamba"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ssamba":
            modules |= {name.asname or name.name for name in node.names}
            yield from (name.name for name in node.names if is_private(name.name))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            if is_private(node.attr):
                yield f"{node.value.id}.{node.attr}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setattr":
            match [*node.args]:
                case [ast.Name(id=owner), ast.Constant(value=str(name)), *_] if owner in modules and is_private(name):
                    yield f"{owner}.{name}"
        elif isinstance(node, ast.Constant) and re.fullmatch(r"ssamba(\.\w+)*\._[a-zA-Z]\w*", str(node.value)):
            yield str(node.value)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(TESTS)))
def test_no_test_knows_a_private_name(path: Path) -> None:
    assert not list(private_names(path.read_text()))


def test_private_names_are_seen_however_they_are_reached() -> None:
    source = """
from ssamba import cli
from ssamba.files import _hidden, shown
import ssamba.jobs as jobs
cli._run(); jobs._start(); other._fine()
monkeypatch.setattr(cli, "_run", None)
monkeypatch.setattr("PATH", None)
monkeypatch.setattr(cli, "run", None)
"""
    path = ".".join(["ssamba", "cli", "_run"])
    seen = sorted(private_names(source.replace("PATH", path)))
    assert seen == ["_hidden", "cli._run", "cli._run", "jobs._start", path]
