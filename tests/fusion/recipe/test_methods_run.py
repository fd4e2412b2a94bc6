"""Every method's recipe, as written with its defaults, through the real mergekit on tiny models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from paft_plugin.fusion.recipe.methods import METHODS, NOT_OFFERED, TIES_GLOBAL
from paft_plugin.fusion.recipe.write import write_recipe
from tests.deltas.builders import make_adapter, weights
from tests.fusion.mergekit_runs import command_in, run_mergekit
from tests.fusion.world import World

CLOSE = {"atol": 2e-7, "rtol": 1e-6}
"""Rounding in fp32: methods that average or turn whole models touch every bit of the base."""


def test_every_method_of_mergekit_is_offered_or_said_to_make_no_sense() -> None:
    from mergekit.merge_methods import registered_methods

    of_mergekit = {method.spec.name for method in registered_methods()} - {TIES_GLOBAL}
    assert of_mergekit == set(METHODS) | set(NOT_OFFERED)
    assert not set(METHODS) & set(NOT_OFFERED)


@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_takes_is_what_mergekit_says(method: str) -> None:
    from mergekit.merge_methods import get
    from mergekit.merge_methods.base import BasePolicy

    ours, spec = METHODS[method], get(method).spec
    theirs = {parameter.name: parameter for parameter in spec.parameters}
    assert (ours.weight is not None) == ("weight" in theirs)
    assert (ours.scales == "lambda") == ("lambda" in theirs)
    assert ours.density is None or "density" in theirs
    for extra in ours.extras:
        assert theirs[extra.name].value_type is type(extra.default)
        assert (theirs[extra.name].scope.value != "shared") == extra.per_branch
        assert extra.allows(extra.default)
    assert (ours.layout == "models") == (spec.contract.base == BasePolicy.IGNORED)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pair", [("sft", "dpo"), ("sft-full", "dpo-full")], ids=["adapters", "models"])
def test_a_methods_recipe_gives_a_finite_model_other_than_the_base(
    world: World, tmp_path: Path, method: str, pair: tuple[str, str]
) -> None:
    recipe = write_recipe(world.request(tmp_path / "r.yml", method, *pair))
    run_mergekit(command_in(recipe.file))
    base, merged = weights(world["base"]), weights(recipe.merged)
    assert set(merged) == set(base)
    assert all(torch.isfinite(tensor).all() for tensor in merged.values())
    # Naming a tokenizer drops the vocabulary's padding rows, so only the rows that are left can be compared.
    assert any(not torch.allclose(tensor[: len(merged[name])], merged[name], **CLOSE) for name, tensor in base.items())


@pytest.mark.parametrize("method", METHODS)
def test_two_zero_deltas_give_the_base(world: World, tmp_path: Path, method: str) -> None:
    if not world["zero-2"].exists():
        make_adapter(world["base"], world["zero-2"], seed=6, size=0.0)
    recipe = write_recipe(world.request(tmp_path / "r.yml", method, "zero", "zero-2"))
    run_mergekit(command_in(recipe.file))
    merged = weights(recipe.merged)
    for name, tensor in weights(world["base"]).items():
        torch.testing.assert_close(merged[name], tensor, **CLOSE, msg=name)
