"""mergekit's private names stand in one file of ours, and the installed mergekit has all of them."""

from __future__ import annotations

import ast
import pkgutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import paft_plugin
from paft_plugin.fusion.mergekit_internals import USED

PACKAGE = Path(paft_plugin.__file__).parent
ADAPTER = PACKAGE / "fusion" / "mergekit_internals.py"


def private_names(tree: ast.AST) -> Iterator[str]:
    """What a file imports of mergekit under a private name, and the private attributes of others' objects that it uses."""
    used = {part for name in USED for part in name.split(".") if part.startswith("_")}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("mergekit"):
            names = [*str(node.module).split("."), *(alias.name for alias in node.names)]
            yield from (name for name in names if name.startswith("_"))
        elif isinstance(node, ast.Attribute) and (node.attr in used or node.attr == "_data"):
            yield node.attr
        elif isinstance(node, ast.Constant) and str(node.value).startswith("mergekit._"):
            yield str(node.value)
        elif isinstance(node, ast.Name) and node.id == "LoaderCache":
            yield node.id


def test_nothing_else_touches_a_private_name_of_mergekit() -> None:
    found = {
        str(file.relative_to(PACKAGE)): names
        for file in PACKAGE.rglob("*.py")
        if (names := set(private_names(ast.parse(file.read_text())))) and file != ADAPTER
    }
    assert found == {}
    assert set(private_names(ast.parse(ADAPTER.read_text()))) >= {"_copy_tokenizer", "_resolve_name", "LoaderCache"}


def test_the_installed_mergekit_has_all_that_we_use() -> None:
    missing = []
    for name, reason in USED.items():
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            missing.append(f"{name} ({reason})")
    assert not missing, f"mergekit {version('mergekit')} has no {', no '.join(missing)}: mend {ADAPTER.name}."
