"""What README says is supported and tested is what pyproject.toml admits, what CI runs, and what is installed."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PYTHONS = [Version(f"3.{minor}") for minor in range(8, 20)]


class Line(NamedTuple):
    """A row of README's table."""

    python: str
    axolotl: str
    brings: dict[str, str]
    tested: str


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    text = (ROOT / "pyproject.toml").read_text()
    project: dict[str, Any] = tomllib.loads(text)["project"]
    return project


@pytest.fixture(scope="module")
def lines() -> list[Line]:
    rows = re.findall(
        r"^\| (3\.\d+) \| (\d+\.\d+) \| (.+?) \| (.+?) \|$", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    assert rows
    return [
        Line(python, axolotl, dict(part.split() for part in brings.split(", ")), said)
        for python, axolotl, brings, said in rows
    ]


def test_the_table_has_every_python_that_is_admitted(lines: list[Line], project: dict[str, Any]) -> None:
    admitted = [str(python) for python in PYTHONS if SpecifierSet(project["requires-python"]).contains(python)]
    assert [line.python for line in lines] == admitted
    named = [entry.rpartition(" ")[2] for entry in project["classifiers"] if re.search(r":: 3\.\d+$", entry)]
    assert named == admitted


def test_the_table_has_the_first_and_the_last_axolotl_that_is_admitted(
    lines: list[Line], project: dict[str, Any]
) -> None:
    (axolotl,) = (found for found in map(Requirement, project["dependencies"]) if found.name == "axolotl")
    bounds = {bound.operator: Version(bound.version) for bound in axolotl.specifier}
    tested = sorted(Version(line.axolotl) for line in lines)
    assert tested[0] == bounds[">="]
    assert Version(f"{tested[-1].major}.{tested[-1].minor + 1}") == bounds["<"]


def test_ci_runs_the_lines_that_the_table_says(lines: list[Line]) -> None:
    script = (ROOT / ".ci" / "run").read_text()
    runs = re.findall(r"^in_new_environment (\S+) # axolotl (\S+)$", script, re.MULTILINE)
    assert runs == [(line.python, line.axolotl) for line in lines if ".ci/run" in line.tested]
    assert re.findall(r"^expect_version axolotl (\S+)$", script, re.MULTILINE) == [axolotl for _, axolotl in runs]


def test_what_the_table_says_comes_with_an_axolotl_is_installed_with_it(lines: list[Line]) -> None:
    installed = version("axolotl")
    for line in lines:
        if installed.startswith(f"{line.axolotl}."):
            found = {name: ".".join(version(name).split(".")[:2]) for name in line.brings}
            assert found == line.brings
