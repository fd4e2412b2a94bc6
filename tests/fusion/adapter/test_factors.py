"""The arithmetic alone: against torch's own SVD in fp64, on matrices that a truncation is hard for and easy for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from paft_plugin.fusion.adapter.errors import ModuleError, rank_for, total_error
from paft_plugin.fusion.adapter.factors import (
    Product,
    least_errors,
    side_by_side,
    squared_norm,
    truncate_dense,
    truncate_product,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def trimmed(rows: int, columns: int) -> Tensor:
    """A product of rank 8 of which the smaller half is gone: many directions that are nearly equally strong."""
    product = random(rows, 8) @ random(8, columns, seed=1)
    return torch.where(product.abs() > product.abs().median(), product, 0)


def least_error(delta: Tensor, rank: int) -> float:
    """Relative error of the best approximation (Eckart and Young), in fp64."""
    S = torch.linalg.svdvals(delta.double())
    return float((S[rank:].square().sum() / S.square().sum()).sqrt())


def value(product: Product) -> Tensor:
    return product.B.double() @ product.A.double()


def test_side_by_side_is_the_scaled_sum() -> None:
    one, other = (random(6, 2), random(2, 5, seed=1)), (random(6, 3, seed=2), random(3, 5, seed=3))
    product = side_by_side([(0.7, *one), (-1.3, *other)])
    assert product.rank == 5
    expected = 0.7 * one[0].double() @ one[1].double() - 1.3 * other[0].double() @ other[1].double()
    torch.testing.assert_close(value(product), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_a_truncated_product_is_the_best_there_is(rank: int) -> None:
    product = Product(random(40, 6), random(6, 30, seed=1))
    truncation = truncate_product(product, rank)
    delta = value(product)
    assert truncation.product.rank == rank
    assert truncation.relative_error == pytest.approx(least_error(delta, rank), rel=1e-6)
    missed = (delta - value(truncation.product)).norm() / delta.norm()
    assert truncation.relative_error == pytest.approx(float(missed), rel=1e-5)


def test_a_product_of_no_more_than_the_rank_is_left_bit_for_bit() -> None:
    product = Product(random(40, 6), random(6, 30, seed=1))
    truncation = truncate_product(product, 6)
    assert truncation.product is product
    assert truncation.squared_error == 0
    assert truncation.square == pytest.approx(float(value(product).square().sum()), rel=1e-9)


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (24, 300), (30, 20)])
@pytest.mark.parametrize("rank", [4, 16])
def test_a_dense_delta_is_met_nearly_as_well_as_can_be_and_the_error_is_true(shape: tuple[int, int], rank: int) -> None:
    delta = trimmed(*shape)
    truncation = truncate_dense(delta, rank)
    assert truncation.product.B.shape == (shape[0], min(rank, *shape))
    least = least_error(delta, rank)
    assert least - 1e-6 <= truncation.relative_error <= 1.005 * least + 1e-6
    missed = (delta.double() - value(truncation.product)).norm() / delta.double().norm()
    assert truncation.relative_error == pytest.approx(float(missed), rel=1e-4, abs=1e-6)


def test_a_dense_delta_of_low_rank_is_found_exactly() -> None:
    delta = random(300, 5) @ random(5, 200, seed=1)
    assert truncate_dense(delta, 8).relative_error < 1e-6


def test_the_errors_of_all_ranks_are_the_tails_of_the_singular_values() -> None:
    delta = trimmed(70, 50)
    squares = torch.linalg.svdvals(delta.double()).square()
    expected = torch.tensor([float(squares[rank:].sum()) for rank in range(51)], dtype=torch.float64)
    for turned in (delta, delta.T):
        torch.testing.assert_close(least_errors(turned), expected, rtol=1e-9, atol=1e-9 * float(expected[0]))


def test_the_global_generator_is_neither_used_nor_moved() -> None:
    delta = trimmed(300, 200)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = truncate_dense(delta, 4).product
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(truncate_dense(delta, 4).product.B, one.B)


def test_a_zero_delta_has_zero_factors_and_no_error() -> None:
    truncation = truncate_dense(torch.zeros(6, 5), 3)
    assert truncation.relative_error == 0
    assert not truncation.product.B.any()
    assert truncation.product.A.shape == (3, 5)


def test_blocks_leave_norms_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    delta = trimmed(70, 50)
    whole = squared_norm(delta), truncate_dense(delta, 4).squared_error, least_errors(delta)
    monkeypatch.setattr("paft_plugin.fusion.adapter.factors.BLOCK", 64)
    assert squared_norm(delta) == pytest.approx(whole[0], rel=1e-12)
    assert truncate_dense(delta, 4).squared_error == pytest.approx(whole[1], rel=1e-6)
    torch.testing.assert_close(least_errors(delta), whole[2], rtol=1e-9, atol=1e-9 * whole[0])


def module(name: str, rank: int, tail: list[float], known: bool = True) -> ModuleError:
    """A module with the given squared errors of ranks 0, 1, 2 …"""
    tensor = torch.tensor(tail, dtype=torch.float64)
    return ModuleError(name, rank, tail[0], tail[rank], tensor if known else None)


def test_the_total_weighs_modules_by_their_deltas() -> None:
    errors = [module("a", 1, [9.0, 3.0, 0.0]), module("b", 1, [1.0, 1.0, 0.0])]
    assert total_error(errors) == pytest.approx(math.sqrt(4 / 10))


def test_the_rank_that_would_do() -> None:
    errors = [module("h.0.q", 1, [8.0, 4.0, 2.0, 1.0, 0.0]), module("h.1.q", 1, [2.0, 1.0, 0.5, 0.0, 0.0])]
    assert rank_for(errors, math.sqrt(2.5 / 10)) == (2, True)
    assert rank_for(errors, math.sqrt(2.4 / 10)) == (3, True)
    assert rank_for(errors, 0.0) == (4, True)


def test_an_unknown_module_loses_as_its_kind_does_and_there_may_be_no_rank() -> None:
    known, unknown = module("h.0.q", 1, [8.0, 4.0, 2.0, 0.0]), module("h.1.q", 1, [4.0, 2.0, 0.1, 0.0], known=False)
    assert rank_for([known, unknown], math.sqrt(3.0 / 12)) == (2, False)
    assert rank_for([known, module("h.1.k", 1, [4.0, 2.0], known=False)], 0.1) is None
