"""Where the adapter is an approximation: how good it is, that it says so truly, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from paft_plugin.errors import PaftError
from paft_plugin.fusion.adapter import FusedAdapter, total_error
from tests.deltas.builders import make_model, make_tokenizer, weights
from tests.fusion.adapter.branches import Branches, Tensors, Write, assert_same, fused_model, through_peft

HALF: dict[str, Any] = {"weight": 1.0, "density": 0.5}
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ties": (HALF, {}),
    "dare_ties": (HALF, {}),
    "dare_linear": (HALF, {}),
    "della": ({"weight": 1.0, "density": 0.5, "epsilon": 0.1}, {}),
    "nuslerp": ({"weight": 1.0}, {}),
    "task_arithmetic": ({"weight": 1.0}, {}),
}
FULL = 48  # as wide as the Llama's widest matrix


def delta(branches: Branches, model: Tensors) -> Tensors:
    base = weights(branches["base"])
    return {name: (tensor.double() - base[name].double()) for name, tensor in model.items()}


def true_errors(branches: Branches, recipe: Path, adapter: Path) -> tuple[dict[str, float], float]:
    """Relative error of each changed matrix and of all together, from the two whole models alone, in fp64."""
    wanted, got = delta(branches, fused_model(recipe)), delta(branches, through_peft(branches, adapter))
    changed = {name: tensor for name, tensor in wanted.items() if tensor.dim() == 2 and tensor.any()}
    missed = {name: (tensor - got[name]).square().sum() for name, tensor in changed.items()}
    square = {name: tensor.square().sum() for name, tensor in changed.items()}
    total = (sum(missed.values()) / sum(square.values())) ** 0.5
    return {name: float((missed[name] / square[name]) ** 0.5) for name in changed}, float(total)


@pytest.mark.parametrize("method", METHODS)
def test_the_reported_errors_are_the_true_ones(branches: Branches, write: Write, tmp_path: Path, method: str) -> None:
    given, content = METHODS[method]
    recipe = branches.recipe(tmp_path / "recipe.yml", method, given, given, dtype="float32", **content)
    out, written = write(recipe, 3, max_error=1.0)
    each, total = true_errors(branches, recipe, out)
    # The models that these are taken from are rounded to fp32: some 1e-5 of the deltas.
    assert {f"{one.module}.weight": one.relative for one in written.errors} == pytest.approx(each, abs=1e-4)
    assert total_error(written.errors) == pytest.approx(total, abs=1e-4)
    assert total > 0.05
    said = json.loads((out / "paft.json").read_text())["adapter"]
    assert said["total_relative_error"] == total_error(written.errors)
    assert said["modules"]["model.layers.0.self_attn.q_proj"]["rank"] == 3


@pytest.mark.parametrize("method", ["ties", "dare_ties", "dare_linear", "breadcrumbs"])
def test_with_full_rank_it_is_the_merged_model(branches: Branches, write: Write, tmp_path: Path, method: str) -> None:
    recipe = branches.recipe(tmp_path / "recipe.yml", method, HALF, HALF, dtype="float32")
    out, written = write(recipe, FULL, max_error=1e-5)
    assert_same(through_peft(branches, out), fused_model(recipe), within=1e-5)
    assert total_error(written.errors) < 1e-5


def test_more_rank_never_misses_more(branches: Branches, write: Write, tmp_path: Path) -> None:
    recipe = branches.recipe(tmp_path / "recipe.yml", "ties", HALF, HALF, dtype="float32")
    totals = [total_error(write(recipe, rank, max_error=1.0)[1].errors) for rank in (1, 4, 12, 24, 32)]
    assert totals == sorted(totals, reverse=True)
    assert totals[0] > 0.5


def test_a_method_that_scales_two_deltas_by_what_they_are_has_their_rank(
    branches: Branches, write: Write, tmp_path: Path
) -> None:
    # nuslerp is no sum with coefficients that the recipe says, but still a combination of both deltas: rank 4 + 3.
    recipe = branches.recipe(tmp_path / "recipe.yml", "nuslerp", {"weight": 1.0}, {"weight": 1.0}, dtype="float32")
    out, _ = write(recipe, 7, max_error=1e-4)
    assert_same(through_peft(branches, out), fused_model(recipe), within=1e-5)


def refusal(write: Write, recipe: Path, rank: int, max_error: float) -> str:
    with pytest.raises(PaftError) as error:
        write(recipe, rank, max_error)
    assert not list(recipe.parent.glob(".fused*"))
    assert not list(recipe.parent.glob("fused*"))
    return str(error.value)


@pytest.mark.parametrize("method", ["ties", "task_arithmetic"])
def test_above_the_greatest_error_it_refuses_and_the_rank_that_it_names_is_the_least(
    branches: Branches, write: Write, tmp_path: Path, method: str
) -> None:
    recipe = branches.recipe(tmp_path / "recipe.yml", method, HALF if method == "ties" else {"weight": 1.0}, HALF)
    said = refusal(write, recipe, 2, max_error=0.2)
    match = re.search(r"misses (0\.\d+) of .* --max-error 0\.2\. --rank (\d+) would do\.", said)
    assert match, said
    assert float(match[1]) > 0.2
    enough = int(match[2])
    assert f"--rank {enough} would do" in refusal(write, recipe, enough - 1, max_error=0.2)
    assert total_error(write(recipe, enough, max_error=0.2)[1].errors) <= 0.2


def test_a_merge_that_is_no_sum_of_deltas_wants_a_rank(branches: Branches, write: Write, tmp_path: Path) -> None:
    recipe = branches.recipe(tmp_path / "recipe.yml", "ties", HALF, HALF)
    with pytest.raises(PaftError, match=r"ties of these models is no sum of adapters' deltas.* Give its rank"):
        write(recipe)


def test_whole_models_give_factors_and_whole_copies_of_what_has_none(
    branches: Branches, write: Write, tmp_path: Path
) -> None:
    full = make_model(branches["base"], tmp_path / "full")
    make_tokenizer(full)
    for method in ("ties", "task_arithmetic"):
        recipe = branches.recipe(
            tmp_path / f"{method}.yml", method, {**HALF, "branch": str(full)}, HALF, dtype="float32"
        )
        out, written = write(recipe, FULL, max_error=1e-4)
        assert_same(through_peft(branches, out), fused_model(recipe), within=1e-5)
        config = json.loads((out / "adapter_config.json").read_text())
        # Full training moves the vocabulary as a whole: no rank would do for it.
        assert {"lm_head", "model.embed_tokens", "model.norm"} <= {*config["modules_to_save"]}
        assert len(config["modules_to_save"]) == 7
        assert any("whole copies of 7" in warning for warning in written.warnings)


def test_a_model_as_one_branch_of_an_average_has_no_base_of_its_own(
    branches: Branches, write: Write, tmp_path: Path
) -> None:
    full = make_model(branches["base"], tmp_path / "full")
    two = ({"weight": 0.5, "branch": str(full)}, {"weight": 0.5, "branch": str(branches["base"])})
    with pytest.raises(PaftError, match="names no one base model"):
        write(branches.recipe(tmp_path / "recipe.yml", "linear", *two, base=False), 4)


def test_the_error_of_a_kind_whose_other_layers_were_not_worked_out_is_estimated(
    branches: Branches, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paft_plugin.fusion.adapter.parts.SMALL", 1)
    recipe = branches.recipe(tmp_path / "recipe.yml", "ties", HALF, HALF)
    said = refusal(write, recipe, 2, max_error=0.2)
    match = re.search(r"--rank (\d+) would do, by an estimate from some modules", said)
    assert match, said
    _, written = write(recipe, int(match[1]), max_error=1.0)
    assert isinstance(written, FusedAdapter)
    assert total_error(written.errors) == pytest.approx(0.2, abs=0.05)
    assert torch.isfinite(torch.tensor([one.relative for one in written.errors])).all()
