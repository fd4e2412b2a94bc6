"""What must hold of any merge: metamorphic relations, and small cases by hand from the methods' papers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mergekit import merge_methods
from torch import Tensor

from paft_plugin.errors import PaftError
from paft_plugin.fusion.merge import fuse_tensors
from paft_plugin.fusion.merge.untouched import skip_draws
from tests.deltas.builders import make_adapter, merged_by_peft, weights
from tests.fusion.merge.tools import METHODS, RANDOM, branch, content, ours, reference, save
from tests.fusion.world import World

# What a method needs to pass one delta on as it is, beside a delta of 0.
IDENTITY: dict[str, dict[str, object]] = {
    "ties": {"weight": 1.0, "density": 1.0},
    "dare_ties": {"weight": 1.0, "density": 1.0},
    "dare_linear": {"weight": 1.0, "density": 1.0},
    "della": {"weight": 1.0, "density": 1.0},
    "della_linear": {"weight": 1.0, "density": 1.0},
    "breadcrumbs": {"weight": 1.0, "density": 1.0},
    "breadcrumbs_ties": {"weight": 1.0, "density": 1.0},
    "task_arithmetic": {"weight": 1.0},
    "ram": {"epsilon": 1e-9},
}
ON_DELTAS = sorted({*IDENTITY, "sce", "ramplus_tl", "model_stock", "nuslerp", "multislerp"})
# Multi-SLERP and Karcher mean of two deltas are symmetric, too, but in another order of rounding.
SYMMETRIC = ["ties", "task_arithmetic", "breadcrumbs", "breadcrumbs_ties", "sce", "ram", "ramplus_tl", "model_stock"]

seeds = st.integers(0, 2**32 - 1)


def deltas(seed: int, *, density: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """A base and two deltas, in fp64, so that their sum and difference are exact enough to see every entry."""
    generator = torch.Generator().manual_seed(seed)
    base, first, second = torch.randn(3, 12, 20, generator=generator, dtype=torch.float64)
    kept = torch.rand(2, 12, 20, generator=generator) < density
    return base, 0.01 * first * kept[0], 0.01 * second * kept[1]


def parameters(method: str) -> dict[str, object]:
    each, shared = METHODS[method]
    return {**each, **shared}


@pytest.mark.parametrize("method", IDENTITY)
@given(seeds)
@settings(max_examples=20, deadline=None)
def test_one_delta_at_weight_1_beside_none_is_that_delta(method: str, seed: int) -> None:
    base, delta, _ = deltas(seed)
    fused = fuse_tensors(method, IDENTITY[method], base, [base + delta, base])
    torch.testing.assert_close(fused, base + delta, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", ON_DELTAS)
@given(seeds)
@settings(max_examples=10, deadline=None)
def test_two_deltas_of_zero_change_nothing(method: str, seed: int) -> None:
    base, _, _ = deltas(seed)
    assert torch.equal(fuse_tensors(method, parameters(method), base, [base.clone(), base.clone()]), base)


@pytest.mark.parametrize("method", SYMMETRIC)
@given(seeds)
@settings(max_examples=20, deadline=None)
def test_the_order_of_the_branches_does_not_matter(method: str, seed: int) -> None:
    base, first, second = deltas(seed)
    one = fuse_tensors(method, parameters(method), base, [base + first, base + second])
    other = fuse_tensors(method, parameters(method), base, [base + second, base + first])
    torch.testing.assert_close(one, other, rtol=0, atol=1e-14)


@pytest.mark.parametrize("method", ["ties", "task_arithmetic", "breadcrumbs", "breadcrumbs_ties", "nuslerp"])
@given(seeds, st.sampled_from([0.25, 0.5, 2.0, 4.0]))
@settings(max_examples=20, deadline=None)
def test_deltas_twice_as_large_give_a_delta_twice_as_large(method: str, seed: int, factor: float) -> None:
    _, first, second = deltas(seed)
    base = torch.zeros_like(first)
    small = fuse_tensors(method, parameters(method), base, [first, second])
    large = fuse_tensors(method, parameters(method), base, [factor * first, factor * second])
    torch.testing.assert_close(large, factor * small, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("method", ON_DELTAS)
@given(seeds)
@settings(max_examples=10, deadline=None)
def test_sparse_deltas_give_a_sparse_delta(method: str, seed: int) -> None:
    _, first, second = deltas(seed, density=0.1)
    base = torch.zeros_like(first)
    fused = fuse_tensors(method, parameters(method), base, [first, second])
    untouched = (first == 0) & (second == 0)
    assert not fused[untouched].any()


def test_ties_by_hand() -> None:
    """TIES (arXiv 2306.01708, section 3): trim to the top half, elect the sign of greater mass, mean of those that agree."""
    first = torch.tensor([4.0, -3.0, 2.0, 1.0, 0.5, -0.1])
    second = torch.tensor([-1.0, -5.0, -6.0, 0.2, 3.0, 0.1])
    # trimmed:   first  [4, −3,  2, 0, 0, 0],   second [0, −5, −6, 0, 3, 0]
    # elected:           +   −   −   .  +  .
    # agreeing:          4, (−3 − 5)/2, −6, 0, 3, 0
    expected = torch.tensor([4.0, -4.0, -6.0, 0.0, 3.0, 0.0])
    base = torch.full((6,), 10.0)
    fused = fuse_tensors("ties", {"weight": 1.0, "density": 0.5}, base, [base + first, base + second])
    torch.testing.assert_close(fused - base, expected)


def test_dare_by_hand() -> None:
    """DARE (arXiv 2311.03099, section 3): drop at random, scale up what is left; mergekit scales to the L1 norm before."""
    delta = torch.tensor([1.0, -2.0, 3.0, -4.0, 5.0, -6.0, 7.0, -8.0])
    torch.manual_seed(5)
    kept = torch.bernoulli(torch.full((8,), 0.5))
    assert 0 < kept.sum() < 8
    torch.manual_seed(5)
    base = torch.zeros(8)
    fused = fuse_tensors("dare_linear", {"weight": 1.0, "density": [0.5, 1.0]}, base, [delta, base])
    torch.testing.assert_close(fused, delta * kept * (36 / (delta * kept).abs().sum()))


def test_methods_without_a_base_and_between_two_models() -> None:
    base, first, second = torch.randn(3, 5, 4)
    mean = fuse_tensors("linear", {"weight": [1.0, 3.0]}, base, [first, second])
    torch.testing.assert_close(mean, 0.25 * first + 0.75 * second)
    assert torch.equal(fuse_tensors("slerp", {"t": 0.0}, base, [first, second]), first)
    torch.testing.assert_close(fuse_tensors("slerp", {"t": 1.0}, base, [first, second]), second)
    assert torch.equal(fuse_tensors("nearswap", {"t": 0.0}, base, [first]), base)


@pytest.mark.parametrize(
    ("method", "given", "said"),
    [
        ("tise", {}, "Unimplemented"),
        ("ties", {"weight": 1.0, "desnity": 0.5}, "desnity"),
        ("ties", {}, "weight"),
        ("ties", {"weight": [1.0, 1.0, 1.0]}, "expects 2"),
        ("della", {"weight": 1.0, "density": 0.9}, "Epsilon"),
    ],
)
def test_a_mistake_in_memory_is_named(method: str, given: dict[str, object], said: str) -> None:
    base = torch.zeros(4, 4)
    with pytest.raises(PaftError, match=said):
        fuse_tensors(method, given, base, [base, base])


@pytest.mark.parametrize("method", IDENTITY)
def test_a_recipe_with_one_delta_is_pefts_own_merge(method: str, world: World, tmp_path: Path) -> None:
    recipe = content(method, world["base"], branch(world, "sft"), branch(world, "zero"))
    for model in recipe["models"]:
        model["parameters"] = {key: value for key, value in IDENTITY[method].items() if key != "epsilon"}
    recipe["parameters"] = {"epsilon": 1e-9} if method == "ram" else {"lambda": 1.0}
    merged, expected = ours(save(recipe, tmp_path / "recipe.yml")), merged_by_peft(world["base"], world["sft"])
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=3e-7, msg=name)


@pytest.mark.parametrize("method", RANDOM)
def test_tensors_that_no_branch_touches_are_the_bases_bits(method: str, world: World, tmp_path: Path) -> None:
    narrow = make_adapter(world["base"], tmp_path / "narrow", seed=1, target_modules=["v_proj"])
    merged = ours(save(content(method, world["base"], reference(world["base"], narrow)), tmp_path / "recipe.yml"))
    for name, tensor in weights(world["base"]).items():
        assert torch.equal(merged[name], tensor) == ("v_proj" not in name), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("method", RANDOM)
def test_a_copy_takes_as_many_draws_as_a_merge(method: str, dtype: torch.dtype) -> None:
    base = torch.zeros(3, 7, dtype=dtype)
    each = [{"epsilon": 0.1, "density": density} for density in (0.3, 1.0, 0.6)]
    shared = {"weight": 1.0, "density": [values["density"] for values in each]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        fuse_tensors(method, shared, base, [base, base, base])
        merged = torch.get_rng_state()
        torch.manual_seed(1)
        per_branch = each if "della" in method else [{"density": values["density"]} for values in each]
        skip_draws(merge_methods.get(method), per_branch, base.numel())
        assert torch.equal(torch.get_rng_state(), merged)
