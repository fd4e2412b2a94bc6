"""The folder and the command line: what a user and a server of adapters find there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from transformers import AutoTokenizer

from paft_plugin.cli import paft
from paft_plugin.deltas.delta import open_delta
from tests.deltas.builders import TEMPLATE, make_adapter
from tests.fusion.adapter.branches import Branches, Write

SUM = {"weight": 1.0}
HALF = {"weight": 1.0, "density": 0.5}


def test_it_holds_the_weights_the_tokenizer_and_where_they_come_from(
    branches: Branches, write: Write, tmp_path: Path
) -> None:
    recipe = branches.recipe(tmp_path / "recipe.yml", "task_arithmetic", SUM, SUM)
    out, written = write(recipe)
    assert written.warnings == []
    weights = {"adapter_config.json", "adapter_model.safetensors"}
    tokenizer = {"chat_template.jinja", "tokenizer.json", "tokenizer_config.json"}
    origin = {"README.md", "mergekit_config.yml", "paft.json"}
    assert {path.name for path in out.iterdir()} == weights | tokenizer | origin
    assert AutoTokenizer.from_pretrained(out).chat_template == TEMPLATE
    record = json.loads((out / "paft.json").read_text())
    assert record["kind"] == "fused adapter"
    assert record["recipe"] == recipe.read_text()
    sft = next(model for model in record["models"] if model.get("adapter", {}).get("path") == str(branches["sft"]))
    assert sft["adapter"]["fingerprint"] == open_delta(branches["base"], branches["sft"]).branch_fingerprint()
    card = (out / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "peft"
    assert "It is exact." in card
    assert sft["adapter"]["fingerprint"] in card


def test_a_fused_adapter_is_a_branch_like_any_other(branches: Branches, write: Write, tmp_path: Path) -> None:
    out, _ = write(branches.recipe(tmp_path / "recipe.yml", "task_arithmetic", SUM, SUM))
    twice, written = write(branches.recipe(tmp_path / "twice.yml", "task_arithmetic", {**SUM, "branch": str(out)}, SUM))
    assert max(one.rank for one in written.errors) == 10
    assert open_delta(branches["base"], twice).kind == "adapter"


def run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner(env={"COLUMNS": "80"}).invoke(
        paft, ["merge", *map(str, arguments), "--device", "cpu", "--quiet"]
    )
    return result.exit_code, result.stdout, result.stderr


def test_the_command_writes_it_and_shows_what_it_misses(branches: Branches, tmp_path: Path) -> None:
    recipe = branches.recipe(tmp_path / "recipe.yml", "ties", HALF, HALF)
    code, shown, _ = run(recipe, tmp_path / "out", "--adapter", "--rank", "3", "--max-error", "0.9")
    assert code == 0
    total = json.loads((tmp_path / "out" / "paft.json").read_text())["adapter"]["total_relative_error"]
    assert f"{total:.4f}" in shown
    assert "self_attn.q_proj" in shown
    *table, _ = shown.splitlines()  # the last line names the folder, however long
    assert max(map(len, table)) <= 80


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--adapter", "--rank", "2"), "more than --max-error 0.05. --rank"),
        (("--adapter",), "Give its rank"),
        (("--rank", "4"), "Add --adapter"),
        (("--max-error", "0.1"), "Add --adapter"),
        (("--adapter", "--rank", "0"), "x>=1"),
        (("--adapter", "--rank", "4", "--max-error", "nan"), "--max-error nan: not a number"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing_behind(
    branches: Branches, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    recipe = branches.recipe(tmp_path / "recipe.yml", "ties", HALF, HALF)
    code, _, errors = run(recipe, tmp_path / "out", *arguments)
    assert code == 2
    assert said in errors
    assert "Traceback" not in errors
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yml"]


def test_a_taken_place_is_refused_and_left_alone(branches: Branches, tmp_path: Path) -> None:
    make_adapter(branches["base"], tmp_path / "out", seed=9)
    before = (tmp_path / "out" / "adapter_model.safetensors").read_bytes()
    recipe = branches.recipe(tmp_path / "recipe.yml", "task_arithmetic", SUM, SUM)
    code, _, errors = run(recipe, tmp_path / "out", "--adapter")
    assert (code, "exists and is not empty" in errors) == (2, True)
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == before
