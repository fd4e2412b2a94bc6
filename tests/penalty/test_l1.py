"""One chunked pass must agree with plain autograd on the whole product, whatever the shapes, dtypes and blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from paft_plugin.penalty import l1
from paft_plugin.penalty.l1 import GradientSink, l1_of_difference, l1_of_product

SHAPES = [(1, 1, 1), (7, 3, 5), (64, 8, 33), (3, 16, 200), (129, 2, 65)]  # (O, R, I)


def naive(A: Tensor, B: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Norm, both gradients and the whole δ by plain autograd in fp64."""
    A, B = A.double().requires_grad_(), B.double().requires_grad_()
    delta = scale * B @ A
    norm = delta.abs().sum()
    return norm.detach(), *torch.autograd.grad(norm, (A, B)), delta.detach()


@pytest.fixture(params=[4, 1 << 18], ids=["small blocks", "one block"])
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(l1, "BLOCK_ENTRIES", request.param)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("scale", [2.0, -0.25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "rank", "columns"), SHAPES)
def test_product_agrees_with_autograd(rows: int, rank: int, columns: int, dtype: torch.dtype, scale: float) -> None:
    torch.manual_seed(0)
    A, B = torch.randn(rank, columns).to(dtype), torch.randn(rows, rank).to(dtype)
    norm, grad_A, grad_B, delta = naive(A, B, scale)
    into_A, into_B = torch.zeros(rank, columns), torch.zeros(rows, rank)
    threshold = delta.abs().median().item() * 1.001
    done = l1_of_product(A, B, scale, (threshold,), GradientSink(into_A, 1.0), GradientSink(into_B, 1.0))
    torch.testing.assert_close(done.norm, norm, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(into_A.double(), grad_A, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(into_B.double(), grad_B, rtol=1e-5, atol=1e-4)
    assert done.entries == delta.numel()
    assert done.small.tolist() == [(delta.abs() <= threshold).sum().item()]


def test_sinks_add_the_strength_times_the_subgradient_to_what_is_there() -> None:
    torch.manual_seed(0)
    A, B = torch.randn(2, 9), torch.randn(5, 2)
    _, grad_A, grad_B, _ = naive(A, B, 3.0)
    into_A, into_B = torch.ones(2, 9), torch.ones(5, 2)
    l1_of_product(A, B, 3.0, (), GradientSink(into_A, 0.1), GradientSink(into_B, 0.2))
    torch.testing.assert_close(into_A.double(), 1 + 0.1 * grad_A, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(into_B.double(), 1 + 0.2 * grad_B, rtol=1e-5, atol=1e-5)


def test_subgradient_of_a_zero_delta_is_exactly_zero() -> None:
    into_A, into_B = torch.zeros(4, 6), torch.zeros(5, 4)
    done = l1_of_product(
        torch.randn(4, 6), torch.zeros(5, 4), 2.0, (0.0,), GradientSink(into_A, 1.0), GradientSink(into_B, 1.0)
    )
    assert done.norm == 0
    assert done.small.tolist() == [30]
    assert torch.count_nonzero(into_A) == torch.count_nonzero(into_B) == 0


def test_a_scale_of_zero_makes_every_entry_small() -> None:
    done = l1_of_product(torch.randn(2, 3), torch.randn(4, 2), 0.0, (0.0, 1e-5))
    assert done.norm == 0
    assert done.small.tolist() == [12, 12]


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1,), (7, 3), (2, 3, 5)])
def test_difference_agrees_with_autograd(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    reference = torch.randn(shape).to(dtype)
    parameter = reference + torch.randn(shape).to(dtype)
    parameter.view(-1)[0] = reference.view(-1)[0]  # one entry that did not move
    expected = parameter.double() - reference.double()
    into = torch.zeros(shape)
    before = parameter.clone()
    done = l1_of_difference(parameter, reference, (0.5,), GradientSink(into, 1.0))
    torch.testing.assert_close(done.norm, expected.abs().sum(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(into.double(), expected.sign())
    assert done.small.tolist() == [(expected.abs() <= 0.5).sum().item()]
    assert torch.equal(parameter, before)


def test_the_pass_never_holds_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block that is counted stays within BLOCK_ENTRIES."""
    monkeypatch.setattr(l1, "BLOCK_ENTRIES", 1000)
    seen: list[int] = []
    count = l1._count
    monkeypatch.setattr(l1, "_count", lambda block, *rest: (seen.append(block.numel()), count(block, *rest)))
    l1_of_product(torch.randn(4, 300), torch.randn(50, 4), 1.0)
    l1_of_difference(torch.randn(3000), torch.randn(3000))
    assert max(seen) <= 1000
    assert sum(seen) == 300 * 50 + 3000
