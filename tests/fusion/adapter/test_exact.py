"""Where a merge is linear in the deltas, base + fused adapter through PEFT is the merged model of the same recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from paft_plugin.deltas.store import TensorStore
from tests.fusion.adapter.branches import Branches, Write, assert_same, fused_model, through_peft

RECIPES: dict[str, tuple[str, tuple[dict[str, Any], ...], dict[str, Any]]] = {
    "weights and lambda": ("task_arithmetic", ({"weight": 0.7}, {"weight": -0.4}), {"parameters": {"lambda": 1.5}}),
    "normalized": ("task_arithmetic", ({"weight": 2.0}, {"weight": 0.5}), {"parameters": {"normalize": True}}),
    "weights by filter": (
        "task_arithmetic",
        ({"weight": [{"filter": "self_attn", "value": 0.2}, {"value": 1.0}]}, {"weight": [0.1, 0.9]}),
        {},
    ),
    "average": ("linear", ({"weight": 1.0}, {"weight": 3.0}), {}),
    "average as written": ("linear", ({"weight": 0.25}, {"weight": 0.75}), {"parameters": {"normalize": False}}),
    "nothing dropped": ("dare_linear", ({"weight": 0.5, "density": 1.0}, {"weight": 0.3, "density": 1.0}), {}),
}


@pytest.mark.parametrize("kind", RECIPES)
def test_peft_makes_the_merged_model_of_it(branches: Branches, write: Write, tmp_path: Path, kind: str) -> None:
    method, inputs, content = RECIPES[kind]
    recipe = branches.recipe(
        tmp_path / "recipe.yml", method, *inputs, base=method != "linear", dtype="float32", **content
    )
    out, written = write(recipe)
    assert_same(through_peft(branches, out), fused_model(recipe))
    assert all(one.relative == 0 for one in written.errors)


def test_ranks_add_up_where_both_adapt_and_stay_where_one_does(
    branches: Branches, write: Write, tmp_path: Path
) -> None:
    out, written = write(branches.recipe(tmp_path / "recipe.yml", "task_arithmetic", {"weight": 1.0}, {"weight": 1.0}))
    ranks = {one.module.removeprefix("model.layers.1."): one.rank for one in written.errors if ".1." in one.module}
    # sft has rank 4 (o_proj: 2), dpo rank 3 on three kinds of modules.
    assert ranks == {
        **{"self_attn.q_proj": 7, "self_attn.k_proj": 4, "self_attn.v_proj": 4, "self_attn.o_proj": 5},
        **{"mlp.gate_proj": 4, "mlp.up_proj": 7, "mlp.down_proj": 4},
    }
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (7, 7, str(branches["base"]))
    assert config["rank_pattern"] == {"k_proj": 4, "v_proj": 4, "o_proj": 5, "gate_proj": 4, "down_proj": 4}
    # What serves with α/r of the top alone finds every factor unscaled too.
    assert config["alpha_pattern"] == config["rank_pattern"]
    assert config["target_modules"] == sorted(config["target_modules"])
    assert not config["use_rslora"]
    assert config["modules_to_save"] is None
    assert config["bias"] == "none"


def test_a_branch_of_weight_0_leaves_the_other_alone(branches: Branches, write: Write, tmp_path: Path) -> None:
    recipe = branches.recipe(
        tmp_path / "recipe.yml", "task_arithmetic", {"weight": 1.0}, {"weight": 0.0}, dtype="float32"
    )
    out, written = write(recipe)
    assert {one.rank for one in written.errors} == {4, 2}
    assert_same(through_peft(branches, out), through_peft(branches, branches["sft"]))


def test_zero_deltas_change_nothing(branches: Branches, write: Write, tmp_path: Path) -> None:
    zero = {"weight": 1.0, "branch": "zero"}
    for method, rank in (("task_arithmetic", None), ("ties", 4)):
        out, _ = write(branches.recipe(tmp_path / f"{method}.yml", method, zero, dtype="float32"), rank)
        base = TensorStore(branches["base"], [branches["base"] / "model.safetensors"])
        merged = through_peft(branches, out)
        assert all(torch.equal(merged[name], base.tensor(name)) for name in base.names)


def test_rounding_asked_for_in_the_recipe_does_not_touch_the_delta(
    branches: Branches, write: Write, tmp_path: Path
) -> None:
    weights = ({"weight": 1.0}, {"weight": 1.0})
    precise = branches.recipe(tmp_path / "fp32.yml", "ties", *weights, dtype="float32")
    rounded = branches.recipe(tmp_path / "bf16.yml", "ties", *weights, dtype="bfloat16", out_dtype="bfloat16")
    one, other = (write(recipe, 32)[0] / "adapter_model.safetensors" for recipe in (precise, rounded))
    assert one.read_bytes() == other.read_bytes()


def test_the_same_recipe_gives_the_same_bytes(branches: Branches, write: Write, tmp_path: Path) -> None:
    half = {"weight": 1.0, "density": 0.5}
    recipe = branches.recipe(tmp_path / "recipe.yml", "dare_ties", half, half)
    one, _ = write(recipe, 6, max_error=1.0)
    torch.rand(7)
    other, _ = write(recipe, 6, max_error=1.0)
    for file in ("adapter_model.safetensors", "adapter_config.json", "paft.json"):
        assert (one / file).read_bytes() == (other / file).read_bytes(), file
