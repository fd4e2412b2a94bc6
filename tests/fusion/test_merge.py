"""A recipe run by the real mergekit must give the tensors that the papers' formulas give, computed here from scratch.

The deltas on this side come from PEFT and from plain subtraction, the formulas from TIES (arXiv 2306.01708, section 3),
DARE (arXiv 2311.03099, section 3) and Task Arithmetic (arXiv 2212.04089); no code of ours or of mergekit is in them.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from paft_plugin.deltas.delta import open_delta
from paft_plugin.fusion.recipe.examples import FOLDER
from paft_plugin.fusion.recipe.render import merge_command
from paft_plugin.fusion.recipe.write import write_recipe
from tests.deltas.builders import TEMPLATE, delta_by_peft, make_adapter, make_base, make_tokenizer, weights
from tests.fusion.mergekit_runs import command_in, run_mergekit
from tests.fusion.world import World, make_world

Tensors = dict[str, Tensor]
Merge = Callable[..., Tensors]
Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def merge(world: World, tmp_path: Path) -> Merge:
    """Write a recipe, run its header's command through mergekit's own command line, return the merged tensors."""

    def run(method: str, world: World = world, **options: Any) -> Tensors:
        folder = tmp_path / f"me rge+{len(list(tmp_path.iterdir()))}@x"
        recipe = write_recipe(world.request(folder / "recipe.yml", method, **options))
        run_mergekit(command_in(recipe.file))
        return weights(recipe.merged)

    return run


def delta(world: World, branch: str) -> Tensors:
    if (world[branch] / "adapter_config.json").is_file():
        return delta_by_peft(world["base"], world[branch])
    return {
        name: weights(world[branch])[name].float() - tensor.float() for name, tensor in weights(world["base"]).items()
    }


def assert_merged(world: World, merged: Tensors, expected: Callable[[Tensor, Tensor], Tensor], *branches: str) -> None:
    """Every merged tensor is base + expected(δ_sft, δ_preference)."""
    sft, preference = (delta(world, branch) for branch in branches or ("sft", "dpo"))
    base = weights(world["base"])
    assert set(merged) == set(base)
    for name, tensor in base.items():
        torch.testing.assert_close(
            merged[name], tensor + expected(sft[name], preference[name]), atol=3e-7, rtol=0, msg=name
        )


def trim(change: Tensor, density: float) -> Tensor:
    """TIES, step 1: keep the largest magnitudes, `density` of a tensor's entries (the paper: of all tensors together)."""
    keep = max(1, int(density * change.numel()))
    threshold = change.abs().flatten().sort(descending=True).values[keep - 1]
    return torch.where(change.abs() >= threshold, change, 0)


def elect(first: Tensor, second: Tensor) -> Tensor:
    """TIES, step 2: the sign with the greater total magnitude."""
    return torch.sign(first + second)


def agreeing(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The entries of each delta that have the elected sign; 0 elsewhere."""
    sign = elect(first, second)
    return torch.where(first.sign() == sign, first, 0), torch.where(second.sign() == sign, second, 0)


def disjoint_mean(first: Tensor, second: Tensor) -> Tensor:
    """TIES, step 3: mean over the deltas that have the elected sign, zeros left out."""
    first, second = agreeing(first, second)
    return (first + second) / ((first != 0).float() + (second != 0).float()).clamp(min=1)


def test_ties_is_the_papers_trim_elect_and_disjoint_mean(world: World, merge: Merge) -> None:
    merged = merge("ties", density=0.3, scale=0.8)
    assert_merged(world, merged, lambda sft, dpo: 0.8 * disjoint_mean(trim(sft, 0.3), trim(dpo, 0.3)))


def test_ties_with_weights_is_the_weighted_sum_of_what_agrees(world: World, merge: Merge) -> None:
    merged = merge("ties", density=0.5, weight_sft=0.4, weight_preference=0.9)
    assert_merged(
        world, merged, lambda sft, dpo: sum(agreeing(0.4 * trim(sft, 0.5), 0.9 * trim(dpo, 0.5)), torch.zeros(()))
    )


def test_ties_of_full_models_and_of_a_mixed_pair(world: World, merge: Merge) -> None:
    def expected(first: Tensor, second: Tensor) -> Tensor:
        return disjoint_mean(trim(first, 0.3), trim(second, 0.3))

    models = {"sft": "sft-full", "preference": "dpo-full"}
    assert_merged(world, merge("ties", density=0.3, **models), expected, *models.values())
    assert_merged(world, merge("ties", density=0.3, preference="dpo-full"), expected, "sft", "dpo-full")


def test_task_arithmetic_is_the_weighted_sum(world: World, merge: Merge) -> None:
    merged = merge("task_arithmetic", weight_sft=0.7, weight_preference=-0.2, scale=1.5)
    assert_merged(world, merged, lambda sft, dpo: 1.5 * (0.7 * sft - 0.2 * dpo))


def test_linear_is_the_mean_and_its_scale_shrinks_both_deltas(world: World, merge: Merge) -> None:
    assert_merged(world, merge("linear"), lambda sft, dpo: (sft + dpo) / 2)
    merged = merge("linear", weight_sft=1.0, weight_preference=3.0, scale=0.6)
    assert_merged(world, merged, lambda sft, dpo: 0.6 * (0.25 * sft + 0.75 * dpo))


def test_dare_drops_at_random_keeps_the_l1_norm_and_draws_by_seed(world: World, merge: Merge) -> None:
    # A weight of 0 shows one branch's drop alone; the same seed draws the same masks whatever the weights are.
    base = weights(world["base"])
    alone = {
        branch: {name: tensor - base[name] for name, tensor in merge("dare_linear", density=0.4, seed=3, **one).items()}
        for branch, one in (("sft", {"weight_preference": 0.0}), ("dpo", {"weight_sft": 0.0}))
    }
    for branch, dropped in alone.items():
        full = delta(world, branch)[Q]
        kept = dropped[Q].abs() > 1e-6
        scale = (
            full.abs().sum() / full[kept].abs().sum()
        )  # DARE's 1/(1 − p), as mergekit takes it: by L1 norm, per tensor
        torch.testing.assert_close(dropped[Q], torch.where(kept, full * scale, 0), atol=1e-6, rtol=1e-5)
        assert 0.35 < float(kept.float().mean()) < 0.45

    both = merge("dare_linear", density=0.4, seed=3)
    elected = merge("dare_ties", density=0.4, seed=3)
    for name, tensor in base.items():
        first, second = alone["sft"][name], alone["dpo"][name]
        torch.testing.assert_close(both[name] - tensor, first + second, atol=1e-6, rtol=0, msg=name)
        # Subtracting the base again leaves fp32 dust where an entry was dropped: it must not vote.
        first, second = (torch.where(change.abs() > 1e-6, change, 0) for change in (first, second))
        torch.testing.assert_close(elected[name] - tensor, sum(agreeing(first, second)), atol=2e-6, rtol=0, msg=name)

    other = merge("dare_linear", density=0.4, seed=4)
    again = merge("dare_linear", density=0.4, seed=3)
    assert torch.equal(again[Q], both[Q])
    assert not torch.equal(other[Q], both[Q])


@pytest.mark.parametrize("method", ["ties", "task_arithmetic"])
def test_one_delta_at_weight_1_beside_a_zero_delta_is_that_delta(world: World, merge: Merge, method: str) -> None:
    density = {"density": 1.0} if method == "ties" else {}
    assert_merged(world, merge(method, preference="zero", **density), lambda sft, _: sft, "sft", "zero")


ADAPTERS: dict[str, dict[str, Any]] = {
    "patterns": {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"k_proj": 20}},
    "embeddings": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "saved modules": {"modules_to_save": ["embed_tokens", "lm_head", "input_layernorm"]},
    "saved tied modules": {
        "modules_to_save": ["embed_tokens"],
        "target_modules": ["q_proj"],
        "ensure_weight_tying": True,
    },
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_mergekit_merges_the_delta_that_we_open_for_every_kind(tmp_path: Path, merge: Merge, kind: str) -> None:
    world = World(tmp_path / "world")
    base = make_base(world["base"], tie_word_embeddings="tied" in kind)
    make_tokenizer(base)
    make_adapter(base, world["sft"], **ADAPTERS[kind])
    make_adapter(base, world["dpo"], size=0.0)
    opened = dict(open_delta(base, world["sft"]).tensors())
    merged = merge("task_arithmetic", world=world)
    for name, tensor in weights(base).items():
        expected = tensor + opened[name] if name in opened else tensor
        torch.testing.assert_close(merged[name], expected, atol=3e-7, rtol=0, msg=name)


@pytest.mark.parametrize("method", ["ties", "dare_ties", "dare_linear", "task_arithmetic", "linear"])
def test_zero_deltas_change_nothing(world: World, merge: Merge, method: str) -> None:
    make_adapter(world["base"], world["zero-too"], seed=6, size=0.0)
    merged = merge(method, sft="zero", preference="zero-too")
    assert all(torch.equal(merged[name], tensor) for name, tensor in weights(world["base"]).items())


def test_order_of_the_branches_does_not_matter_for_ties(merge: Merge) -> None:
    one, other = merge("ties"), merge("ties", sft="dpo", preference="sft")
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_small_deltas_survive_on_a_bf16_base(tmp_path: Path, merge: Merge) -> None:
    world = make_world(tmp_path / "bf16", torch.bfloat16)
    for branch, seed in (("sft", 1), ("dpo", 2)):
        make_adapter(world["base"], world[branch], seed=seed, size=2e-3)
    merged = merge("task_arithmetic", world=world, scale=30.0)
    assert {tensor.dtype for tensor in merged.values()} == {torch.bfloat16}
    base, sft, dpo = weights(world["base"]), delta(world, "sft"), delta(world, "dpo")
    for name, tensor in base.items():
        expected = tensor.float() + 30 * (sft[name] + dpo[name])
        # One rounding, at the end; had base + adapter been rounded before, the scale would show it thirtyfold.
        torch.testing.assert_close(merged[name].float(), expected, atol=1e-6, rtol=2**-8, msg=name)


def test_the_fused_folder_is_a_whole_model_with_the_bases_tokenizer(world: World, tmp_path: Path) -> None:
    for method, sft in (("ties", "sft"), ("ties", "sft-full"), ("linear", "sft"), ("linear", "sft-full")):
        recipe = write_recipe(world.request(tmp_path / f"{method}+{sft}.yml", method, sft=sft))
        run_mergekit(merge_command(recipe))
        assert AutoTokenizer.from_pretrained(recipe.merged).chat_template == TEMPLATE
        AutoModelForCausalLM.from_pretrained(recipe.merged)
        generation = recipe.merged / "generation_config.json"
        if method == "ties":
            assert json.loads(generation.read_text())["max_new_tokens"] == 7


def test_a_retrained_adapter_gets_a_cache_of_its_own(world: World, tmp_path: Path) -> None:
    branch = make_adapter(world["base"], tmp_path / "branch", seed=7)
    request = world.request(tmp_path / "recipe.yml", "ties", preference=str(branch))
    first = write_recipe(request).lora_cache
    assert write_recipe(request).lora_cache == first
    make_adapter(world["base"], branch, seed=8)
    assert write_recipe(request).lora_cache != first


@pytest.mark.parametrize("recipe", sorted(FOLDER.glob("*.yml")), ids=lambda path: path.stem)
def test_mergekit_reads_the_shipped_recipes_and_knows_every_parameter(recipe: Path) -> None:
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge_methods import get

    content = yaml.safe_load(recipe.read_text())
    config = MergeConfiguration.model_validate(content)
    assert set(content) <= set(MergeConfiguration.model_fields)
    spec = get(config.merge_method).spec.parameters
    shared = {parameter.name for parameter in spec if parameter.scope.value == "shared"}
    assert set(config.parameters or {}) <= shared
    for model in config.models or []:
        assert set(model.parameters or {}) <= {parameter.name for parameter in spec} - shared


@pytest.mark.slow
def test_the_header_runs_in_a_shell(world: World, tmp_path: Path) -> None:
    recipe = write_recipe(world.request(tmp_path / "it's a+b@c.yml", "ties", density=0.3))
    (line,) = [line for line in recipe.file.read_text().splitlines() if line.startswith("# mergekit-yaml ")]
    subprocess.run(["bash", "-c", line.removeprefix("# ")], check=True, capture_output=True, cwd=tmp_path)  # noqa: S607
    assert_merged(world, weights(recipe.merged), lambda sft, dpo: disjoint_mean(trim(sft, 0.3), trim(dpo, 0.3)))
