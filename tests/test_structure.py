"""The house as DESIGN.md draws it: which room may use which, no circle, no wall of files, no idea under two names.

Every bound can be tightened; none should be loosened without a reason in the commit that does it.
"""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "paft_plugin"

SHARED = {"errors", "reading", "files", "formats", "machine", "schema", "drawing", "tables", "templates"}
"""Modules at the top that any room may use; `runner/` uses the first three and nothing else of ours."""
BOTTOM_UP = {
    "penalty": {"deltas"},
    "deltas": set(),
    "fusion": {"deltas"},
    "evaluation": {"deltas"},
    "search": {"fusion", "evaluation", "deltas"},
    "inspection": {"deltas", "evaluation"},
    "report": {"inspection", "evaluation", "deltas", "penalty.strength", "fusion.lint.findings", "search.alpha_curve"},
    "pipeline": {
        "deltas",
        "fusion",
        "evaluation",
        "search",
        "inspection",
        "report",
        "runner",
        "penalty.strength",
        "args",
    },
    "study": {
        "pipeline",
        "search",
        "evaluation",
        "report",
        "runner",
        "deltas",
        "fusion.recipe",
        "inspection.inspected",
        "inspection.training_log",
    },
    "demo": {"study", "pipeline", "runner"},
    "args": {"penalty"},
    "plugin": {"penalty", "args"},
    "cli": {"commands"},
    PACKAGE: {"args", "plugin"},
}
"""Room → the rooms, or single modules of them, that it may use. `commands/` and `benchmarks/` may use all.

Single modules are formulas (`penalty.strength`: what a λ comes to) and file formats (`fusion.lint.findings`: lint.json;
`search.alpha_curve`: alpha.json).
"""

FILES_IN_A_FOLDER = 15
FILES = 250
LINES = 44_583  # goal: 27_500
SMALL = 100
"""Lines of a file that is looked at again if it has a single reader."""
SMALL_ONE_READER_FILES = 15
SAME_CLASS_NAME: set[str] = set()
"""Names that two classes bear."""
ADAPTERS = {
    "mergekit": {"fusion.mergekit_internals"},
    "ray": {"runner.ray.private"},
    "axolotl": {"pipeline.preflight.axolotl_internals"},
    "lm_eval": set(),
}
"""Library → the modules that may use names which it does not promise."""


@cache
def trees() -> dict[str, ast.Module]:
    """Every module of the package, by its name without the package's; the package itself is `paft_plugin`."""
    found = {}
    for file in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = file.relative_to(ROOT / PACKAGE).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        found[".".join(parts) or PACKAGE] = ast.parse(file.read_text(encoding="utf-8"))
    return found


def lines_of(module: str) -> int:
    file = ROOT / PACKAGE / Path(*module.split("."))
    return (
        len(file.with_suffix(".py").read_text(encoding="utf-8").splitlines())
        if file.with_suffix(".py").is_file()
        else 0
    )


def running(node: ast.AST) -> Iterator[ast.AST]:
    """Everything in a tree that runs: what is there for type checkers alone is left out."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield from running(child)


def imported(tree: ast.Module) -> Iterator[str]:
    """The dotted names of whatever a module imports, inside functions as well."""
    for node in running(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def graph() -> dict[str, set[str]]:
    """Module → the modules of ours that it imports."""
    uses: dict[str, set[str]] = {}
    for module, tree in trees().items():
        names = [name.removeprefix(f"{PACKAGE}.") for name in imported(tree) if name.startswith(f"{PACKAGE}.")]
        found = {name if name in trees() else name.rpartition(".")[0] or PACKAGE for name in names}
        uses[module] = found - {module}
    return uses


def room(module: str) -> str:
    return module.partition(".")[0]


def may_use(module: str, other: str) -> bool:
    """Whether the table lets a module import another one."""
    if room(other) == PACKAGE or room(module) in (room(other), "commands", "benchmarks"):
        return True
    if room(module) in SHARED:
        return room(other) in SHARED
    allowed = BOTTOM_UP.get(room(module), set()) | SHARED
    return any(other == name or other.startswith(f"{name}.") for name in allowed)


def test_rooms_use_only_the_rooms_below_them() -> None:
    wrong = [
        f"{module} imports {other}"
        for module, others in graph().items()
        for other in others
        if room(module) != "runner" and not may_use(module, other)
    ]
    assert not wrong


def test_the_runner_knows_nothing_of_paft() -> None:
    wrong = [
        f"{module} imports {other}"
        for module, others in graph().items()
        for other in others
        if room(module) == "runner" and room(other) not in ("runner", "errors", "reading", "files")
    ]
    assert not wrong


def test_no_file_imports_itself_by_a_detour() -> None:
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' → '.join(error.args[1])}")


def test_no_folder_is_a_wall_of_files() -> None:
    files = [file for file in (ROOT / PACKAGE).rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    counts = Counter(str(file.parent.relative_to(ROOT)) for file in files)
    assert {folder: count for folder, count in counts.items() if count > FILES_IN_A_FOLDER} == {}


def test_the_package_stays_small() -> None:
    files = list((ROOT / PACKAGE).rglob("*.py"))
    lines = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)
    assert len(files) <= FILES
    assert lines <= LINES


def test_few_small_files_have_a_single_reader() -> None:
    """One idea, one file: a small file that a single other one reads is a part of that one's idea."""
    readers = defaultdict(set)
    for module, others in graph().items():
        for other in others:
            readers[other].add(module)
    small = sorted(
        module
        for module in trees()
        if room(module) != "commands"
        and not module.endswith("__main__")
        and 0 < lines_of(module) <= SMALL
        and len({reader for reader in readers[module] if room(reader) != "commands"}) == 1
    )
    assert len(small) <= SMALL_ONE_READER_FILES, small


def test_a_class_name_means_one_thing() -> None:
    named = Counter(node.name for tree in trees().values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    assert {name for name, count in named.items() if count > 1} <= SAME_CLASS_NAME


@pytest.mark.parametrize("library", ADAPTERS)
def test_private_names_of_a_library_stand_in_its_adapter_file(library: str) -> None:
    wrong = [
        f"{module} uses {name}"
        for module, tree in trees().items()
        if module not in ADAPTERS[library]
        for name in [*imported(tree), *attributes(tree)]
        if name.split(".")[0] == library and any(part.startswith("_") for part in name.split("."))
    ]
    assert not wrong


def attributes(tree: ast.Module) -> Iterator[str]:
    """Dotted names that are looked up, such as `ray._private.worker`; those of objects cannot be told."""
    for node in running(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            yield ast.unparse(node)


def test_what_tests_share_stands_in_modules_of_its_own() -> None:
    """Helpers come from named modules, never from other tests; pytest itself finds the fixtures in `conftest.py`."""
    wrong = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in sorted((ROOT / "tests").rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
        if any(part == "conftest" or part.startswith("test_") for part in name.split("."))
    ]
    assert not wrong
