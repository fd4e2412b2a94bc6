"""The reasons behind the methods' defaults, measured on mergekit's own kernels with sparse and with dense deltas.

`mergekit_recipes/` and `methods.py` state them; whoever changes a default, or meets another mergekit, sees here whether
they still hold.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mergekit.merge_methods.api import merge_tensors
from mergekit.sparsify import RescaleNorm, bernoulli, della_magprune, magnitude_outliers
from torch import Tensor

from paft_plugin.fusion.recipe.methods import METHODS
from paft_plugin.fusion.recipe.render import build_recipe, two_branches
from paft_plugin.fusion.recipe.settings import RecipeSettings
from paft_plugin.fusion.recipe.write import RecipeRequest, describe, write_recipe
from tests.deltas.builders import weights
from tests.fusion.deltas import change, make_pair
from tests.fusion.mergekit_runs import command_in, run_mergekit

SHAPE = torch.Size((96, 256))
BASE = 0.02 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


def delta(share: float, seed: int, size: float = 3e-5) -> Tensor:
    return change(SHAPE, share, size, torch.Generator().manual_seed(seed))


def merged(method: str, *models: Tensor, base: bool = True, **parameters: Any) -> Tensor:
    """The merged delta of models (base first, if it takes part)."""
    tensors = [model.double() for model in models]
    return (merge_tensors(tensors, method, parameters=parameters, base_index=0 if base else None) - BASE).float()


def error(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize(("share", "gamma", "left"), [(0.009, 0.01, 1e-3), (0.05, 0.01, 0.75), (0.009, 0.0, 1.0)])
def test_mergekits_own_gamma_takes_a_sparse_delta_away_and_ours_takes_nothing(
    share: float, gamma: float, left: float
) -> None:
    sparse = delta(share, 1)
    kept = magnitude_outliers(sparse, 0.2, gamma=gamma)
    assert float(kept.norm() / sparse.norm()) <= left + 1e-6
    if left == 1:
        assert torch.equal(kept, sparse)
    assert next(extra.default for extra in METHODS["breadcrumbs"].extras if extra.name == "gamma") == 0


def test_dares_published_density_leaves_a_tenth_of_a_sparse_delta_at_ten_times_its_size() -> None:
    torch.manual_seed(0)
    sparse = delta(0.05, 1)
    kept = bernoulli(sparse, 0.1, RescaleNorm.l1)
    there = kept != 0
    assert 0.05 < float(there.sum() / (sparse != 0).sum()) < 0.15
    assert 7 < float((kept[there] / sparse[there]).mean()) < 15


def test_della_tells_large_from_small_in_a_dense_delta_and_not_in_a_sparse_one() -> None:
    def kept_shares(share: float) -> tuple[float, float]:
        torch.manual_seed(0)
        one = delta(share, 1)
        kept, nonzero = della_magprune(one, 0.5, 0.1) != 0, one != 0
        large = one.abs() > one[nonzero].abs().median()
        return float(kept[large].float().mean()), float(kept[nonzero & ~large].float().mean())

    large, small = kept_shares(1.0)
    assert large - small > 0.07
    large, small = kept_shares(0.05)
    assert abs(large - small) < 0.07
    assert 0.55 < (large + small) / 2 < 0.63


def test_slerp_of_models_this_close_is_their_mean_and_nuslerp_is_not() -> None:
    sft, preference = delta(0.05, 1), delta(1.0, 2)
    mean = (sft + preference) / 2
    assert error(merged("slerp", BASE + sft, BASE + preference, t=0.5), mean) < 1e-3
    turned = merged("nuslerp", BASE, BASE + sft, BASE + preference, weight=[1.0, 1.0])
    assert error(turned, 2**0.5 * mean) < 0.05  # at right angles


def test_karcher_counts_a_base_model_as_one_more_model() -> None:
    sft, preference = delta(1.0, 1), delta(1.0, 2)
    assert error(merged("karcher", BASE + sft, BASE + preference, base=False), (sft + preference) / 2) < 1e-3
    assert error(merged("karcher", BASE, BASE + sft, BASE + preference), (sft + preference) / 3) < 1e-3


def test_model_stock_stays_at_the_base_between_deltas_at_right_angles() -> None:
    sft, preference = delta(0.05, 1, size=3e-3), delta(0.05, 2, size=3e-3)
    moved = merged("model_stock", BASE, BASE + sft, BASE + preference)
    assert float(moved.norm() / ((sft + preference) / 2).norm()) < 0.1


def test_sce_weighs_small_deltas_alike_and_large_ones_by_their_energy() -> None:
    for size, uniform in ((3e-5, True), (3e-2, False)):
        sft, preference = delta(1.0, 1, size), delta(1.0, 2, 3 * size)
        ties = merged("ties", BASE, BASE + sft, BASE + preference, weight=[1.0, 1.0], density=[1.0, 1.0])
        assert (error(merged("sce", BASE, BASE + sft, BASE + preference), ties) < 1e-3) == uniform


def test_ram_takes_entries_up_to_its_epsilon_for_unchanged() -> None:
    sft = delta(1.0, 1)
    assert error(
        merged("ram", BASE, BASE + sft, BASE, epsilon=1e-5), torch.where(sft.abs() > 1e-5, sft, 0)
    ) < 0.05  # fmt: skip


def test_multislerps_scale_stands_in_its_weights() -> None:
    sft, preference = delta(1.0, 1), delta(0.05, 2)
    models = (BASE, BASE + sft, BASE + preference)
    plain = merged("multislerp", *models, weight=[0.5, 0.5])
    scaled = merged("multislerp", *models, weight=[0.35, 0.35], normalize_weights=False)
    assert error(scaled, 0.7 * plain) < 1e-4


@pytest.mark.parametrize("method", ["ties", "breadcrumbs", "breadcrumbs_ties"])
def test_a_sparse_delta_is_not_sorted_for_a_trim_that_would_change_nothing(tmp_path: Path, method: str) -> None:
    def recipe(name: str, density: float | None) -> RecipeRequest:
        branches = two_branches(pair / "sft", pair / "preference")
        return RecipeRequest(pair / "base", branches, method, tmp_path / f"{name}.yml", RecipeSettings(density=density))

    pair = make_pair(tmp_path / "sparse", share=0.05)
    own, written = write_recipe(recipe("own", None)), write_recipe(recipe("written", 0.2))
    assert "so sparse that the largest 20%" in own.file.read_text()
    densities = [model["parameters"]["density"] for model in build_recipe(own)["models"]]
    assert densities == [1.0, 1.0]
    for one in (own, written):
        run_mergekit(command_in(one.file))
    assert all(torch.equal(tensor, weights(written.merged)[name]) for name, tensor in weights(own.merged).items())


def test_a_dense_delta_keeps_the_default_density(tmp_path: Path) -> None:
    pair = make_pair(tmp_path / "dense", share=1.0)
    request = RecipeRequest(pair / "base", two_branches(pair / "sft", pair / "preference"), "ties", tmp_path / "r.yml")
    densities = [model["parameters"]["density"] for model in build_recipe(describe(request))["models"]]
    assert densities == [0.2, 0.2]
