"""More than two branches: small cases by hand, and in which methods their order or a branch of zeros matters."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor

from paft_plugin.fusion.merge import fuse_tensors
from tests.fusion.merge.tools import METHODS, PAIRS, RANDOM

FIRST = torch.tensor([4.0, -3.0, 2.0, 1.0, 0.5, -0.1])
SECOND = torch.tensor([-1.0, -5.0, -6.0, 0.2, 3.0, 0.1])
THIRD = torch.tensor([2.0, 4.0, -1.0, 3.0, 0.0, 0.5])
BASE = torch.full((6,), 10.0)
ANY_NUMBER = [name for name in METHODS if name not in (*PAIRS, "nuslerp")]
ORDER_MATTERS = RANDOM
"""Methods that draw for one branch after the other: another order, other draws."""
ZERO_MATTERS = ("linear", "karcher", "multislerp", "model_stock", "sce")
"""Methods that average all branches, or choose by how they differ: one that learnt nothing pulls the others to the base."""


def fused(method: str, *deltas: Tensor, **parameters: object) -> Tensor:
    """The fused delta."""
    return fuse_tensors(method, parameters, BASE, [BASE + delta for delta in deltas]) - BASE


def test_ties_of_three_by_hand() -> None:
    """TIES (arXiv 2306.01708, section 3): trim to the top half, elect the sign of greater mass, mean of those that agree."""
    # trimmed:   [4, −3, 2, 0, 0, 0], [0, −5, −6, 0, 3, 0], [2, 4, 0, 3, 0, 0]
    # sums:       6  −4 −4  3  3  .
    # agreeing:  (4 + 2)/2, (−3 − 5)/2, −6, 3, 3, 0
    expected = torch.tensor([3.0, -4.0, -6.0, 3.0, 3.0, 0.0])
    torch.testing.assert_close(fused("ties", FIRST, SECOND, THIRD, weight=1.0, density=0.5), expected)


def test_task_arithmetic_of_three_by_hand() -> None:
    """Task Arithmetic (arXiv 2212.04089, equation 1): the base and the weighted sum."""
    expected = 0.5 * (1.0 * FIRST - 0.5 * SECOND + 2.0 * THIRD)
    got = fused("task_arithmetic", FIRST, SECOND, THIRD, weight=[1.0, -0.5, 2.0], **{"lambda": 0.5})
    torch.testing.assert_close(got, expected)


def test_dare_of_three_by_hand() -> None:
    """DARE (arXiv 2311.03099, section 3) with known masks; mergekit scales what is left to the L1 norm before."""
    torch.manual_seed(5)
    masks = [torch.bernoulli(torch.full((6,), 0.5)) for _ in range(3)]
    assert all(0 < mask.sum() < 6 for mask in masks)
    deltas = (FIRST, SECOND, THIRD)
    dropped = [mask * delta for mask, delta in zip(masks, deltas, strict=True)]
    expected = sum(one * delta.abs().sum() / one.abs().sum() for one, delta in zip(dropped, deltas, strict=True))
    torch.manual_seed(5)
    torch.testing.assert_close(fused("dare_linear", *deltas, weight=1.0, density=0.5), expected)


def random_deltas() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [0.01 * torch.randn(12, 20, generator=generator, dtype=torch.float64) for _ in range(3)]


def of_random(method: str, deltas: list[Tensor]) -> Tensor:
    each, shared = METHODS[method]
    base = torch.randn(12, 20, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    torch.manual_seed(0)
    return fuse_tensors(method, {**each, **shared}, base, [base + delta for delta in deltas])


@pytest.mark.parametrize("method", ANY_NUMBER)
def test_the_order_of_the_branches(method: str) -> None:
    results = [of_random(method, list(deltas)) for deltas in permutations(random_deltas())]
    same = all(torch.allclose(one, results[0], rtol=0, atol=1e-9) for one in results)
    assert same == (method not in ORDER_MATTERS)


@pytest.mark.parametrize("method", ANY_NUMBER)
def test_a_branch_of_zeros(method: str) -> None:
    deltas = random_deltas()
    without, beside = of_random(method, deltas), of_random(method, [*deltas, torch.zeros_like(deltas[0])])
    assert torch.allclose(without, beside, rtol=0, atol=1e-9) == (method not in ZERO_MATTERS)
