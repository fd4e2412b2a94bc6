"""`axolotl paft lint`: exit codes, several recipes at once, 80 columns, JSON for machines."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from paft_plugin.fusion.lint.findings import RULES
from tests.cli import invoke
from tests.fusion.lint.bench import Bench

RECIPES = Path(__file__).parents[3] / "mergekit_recipes"
call = partial(invoke, "lint")


@pytest.fixture(autouse=True)
def _width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_a_healthy_recipe_exits_with_0(bench: Bench) -> None:
    result = call(bench.write(bench.recipe()))
    assert (result.exit_code, result.stdout) == (0, "0 errors, 0 warnings in 1 recipe.\n")


def test_warnings_exit_with_0_and_errors_with_2(bench: Bench) -> None:
    file = bench.write(bench.recipe("ties", density=0.3))
    result = call(file)
    assert result.exit_code == 0
    assert f"{file}:9: warning PAFT403 trims-nothing" in result.stdout
    assert "0 errors, 2 warnings in 1 recipe." in result.stdout
    result = call(bench.write(bench.recipe("ties") | {"dtpye": "float32"}))
    assert result.exit_code == 2
    assert "→ Did you mean `dtype`?" in result.stdout


def test_several_recipes_each_with_its_own(bench: Bench) -> None:
    result = call(RECIPES / "paft-ties.yml", bench.write(bench.recipe()), "/no/such.yml")
    assert result.exit_code == 2
    assert result.stdout.count("PAFT301 folder-missing") == 3
    assert "/no/such.yml: error PAFT101 not-yaml" in result.stdout
    assert result.stdout.endswith("4 errors, 0 warnings in 3 recipes.\n")
    assert "Traceback" not in result.output


def test_prose_fits_into_80_columns(bench: Bench) -> None:
    result = call(bench.write(bench.recipe("ties", density=0.3, weight=0.5)))
    long = [line for line in result.stdout.splitlines() if len(line) > 80]
    assert all(str(bench.own) in line for line in long), long


def test_without_weights(bench: Bench) -> None:
    file = bench.write(bench.recipe("ties", density=0.3))
    result = call("--no-weights", file)
    trim = f"{file}: ties trims each tensor by itself, as mergekit does.\n"
    assert (result.exit_code, result.stdout) == (0, f"{trim}0 errors, 0 warnings in 1 recipe. Weights were not read.\n")


def test_json_for_machines(bench: Bench) -> None:
    file = bench.write(bench.recipe("ties") | {"dtpye": "float32"})
    out = bench.own / "new" / "findings.json"
    assert call(file, RECIPES / "paft-ties.yml", "--json", out).exit_code == 2
    content = json.loads(out.read_text())
    assert content["schema"] == 1
    assert [recipe["file"] for recipe in content["recipes"]] == [str(file), str(RECIPES / "paft-ties.yml")]
    (finding,) = content["recipes"][0]["findings"]
    assert finding == {
        "code": "PAFT102", "name": "unknown-key", "severity": "error", "file": str(file), "line": finding["line"],
        "where": "dtpye", "message": "`dtpye` means nothing here: mergekit ignores it.",
        "fix": "Did you mean `dtype`?", "plain_only": False,
    }  # fmt: skip


def test_every_code_is_explained() -> None:
    result = call("--explain", "all")
    assert result.exit_code == 0
    assert RULES
    assert all(rule.code in result.stdout for rule in RULES.values())
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "PAFT102 unknown-key: error" in call("--explain", "PAFT102").stdout
    assert call("--explain", "PAFT999").exit_code == 2


def test_no_recipe_is_a_mistake() -> None:
    assert call().exit_code == 2
