"""Norm, sparsity and subgradient, block by block, agree with plain fp64 autograd on the whole delta."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from paft_plugin.penalty import l1
from paft_plugin.penalty.l1 import (
    add_subgradient_of_difference,
    difference_blocks,
    measure_difference,
    measure_product,
    subgradient_of_product,
)

SHAPES = [(1, 1, 1), (7, 3, 5), (64, 8, 33), (3, 16, 200), (129, 2, 65)]  # (O, R, I)
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
EXACT = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(params=[1, 100, 1 << 18], ids=["a row a block", "small blocks", "one block"])
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(l1, "BLOCK_ENTRIES", request.param)


def factors(rows: int, rank: int, columns: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(rank, columns).to(dtype), torch.randn(rows, rank).to(dtype)


def by_autograd(A: Tensor, B: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """The whole δ and both gradients of ‖δ‖₁."""
    A, B = A.double().requires_grad_(), B.double().requires_grad_()
    delta = scale * B @ A
    return delta.detach(), *torch.autograd.grad(delta.abs().sum(), (A, B))


def moved(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """θ and θ_pre; every third entry has not moved."""
    torch.manual_seed(0)
    reference = torch.randn(shape).to(dtype)
    parameter = reference + torch.randn(shape).to(dtype)
    parameter.view(-1)[::3] = reference.view(-1)[::3]
    return parameter, reference


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("scale", [2.0, -0.25, 0.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "rank", "columns"), SHAPES)
def test_a_product_agrees_with_autograd(rows: int, rank: int, columns: int, dtype: torch.dtype, scale: float) -> None:
    A, B = factors(rows, rank, columns, dtype)
    delta, expected_A, expected_B = by_autograd(A, B, scale)
    threshold = delta.abs().median().item() * 1.001
    measured = measure_product(A, B, scale, (0.0, threshold))
    grad_A, grad_B = subgradient_of_product(A, B, scale)
    torch.testing.assert_close(measured.norm, delta.abs().sum(), rtol=1e-6, atol=0)
    assert measured.small.tolist() == [(delta.abs() <= limit).sum().item() for limit in (0.0, threshold)]
    assert grad_A.dtype == grad_B.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(grad_A.double(), expected_A, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(grad_B.double(), expected_B, rtol=1e-5, atol=1e-4)


def test_a_product_is_exact_where_training_multiplies_in_bf16() -> None:
    """oneDNN rounds large fp32 matrices to bf16 if it may (and the processor can), as a GPU rounds them to TF32."""
    A, B = factors(512, 512, 512)
    allowed = torch.get_float32_matmul_precision()

    def results(precision: str) -> list[Tensor]:
        torch.set_float32_matmul_precision(precision)
        try:
            measured, gradients = measure_product(A, B, 1.0, (1.0,)), subgradient_of_product(A, B, 1.0)
            assert torch.get_float32_matmul_precision() == precision
        finally:
            torch.set_float32_matmul_precision(allowed)
        return [measured.norm, measured.small, *gradients]

    for exact, fast in zip(results("highest"), results("medium"), strict=True):
        assert torch.equal(exact, fast)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("dead", ["A", "B", "rows and columns"])
def test_where_a_product_is_zero_its_subgradient_is_exactly_zero(dead: str) -> None:
    A, B = factors(30, 4, 20)
    if dead == "A":
        A.zero_()
    elif dead == "B":
        B.zero_()
    else:
        A[:, ::2], B[::3] = 0, 0
    grad_A, grad_B = subgradient_of_product(A, B, 2.0)
    delta, *expected = by_autograd(A, B, 2.0)
    assert measure_product(A, B, 2.0, (0.0,)).small.item() == (delta == 0).sum()
    for ours, theirs in zip((grad_A, grad_B), expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, **EXACT)
        assert not ours[theirs == 0].any()


def test_a_product_is_measured_without_thresholds_too() -> None:
    A, B = factors(5, 2, 9)
    measured = measure_product(A, B, 3.0)
    assert measured.small.shape == (0,)
    assert measured.norm.dtype == torch.float64
    assert measured.norm == measure_product(A, B, 3.0, (1.0, 2.0)).norm


def test_norm_and_thresholds_scale_with_the_adapter() -> None:
    """Metamorphic: δ → 4δ makes the norm 4 times as large and the same entries small at 4 times the threshold."""
    A, B = factors(31, 4, 57)
    once, fourfold = measure_product(A, B, 0.5, (0.1, 1.0)), measure_product(A, B, -2.0, (0.4, 4.0))
    assert fourfold.norm == 4 * once.norm
    assert fourfold.small.tolist() == once.small.tolist()


def test_a_threshold_of_a_tiny_scale_counts_what_the_tiny_delta_has() -> None:
    A, B = factors(5, 2, 9)
    assert measure_product(A, B, 1e-30, (1e-5, 0.0)).small.tolist() == [45, 0]


def test_the_norm_does_not_saturate() -> None:
    """Past 2^24, fp32 holds no odd number."""
    rows, columns = 4099, 4097
    measured = measure_product(torch.ones(1, columns), torch.ones(rows, 1), 1.0, (1.0,))
    assert measured.norm.item() == measured.small.item() == rows * columns > 1 << 24


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (7, 31), (2, 3, 5), (1009,)])
def test_a_difference_agrees_with_autograd(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    parameter, reference = moved(shape, dtype)
    before = parameter.clone()
    variable = parameter.double().requires_grad_()
    delta = variable - reference.double()
    (expected,) = torch.autograd.grad(delta.abs().sum(), variable)

    measured = measure_difference(parameter, reference, (0.0, 0.5))
    gradient = torch.full(shape, 2.0)
    add_subgradient_of_difference(parameter, reference, gradient, 0.25)

    torch.testing.assert_close(measured.norm, delta.detach().abs().sum(), rtol=1e-6, atol=0)
    assert measured.small.tolist() == [(delta.abs() <= limit).sum().item() for limit in (0.0, 0.5)]
    assert torch.equal(gradient.double(), 2 + 0.25 * expected)
    assert torch.equal(parameter, before)


def test_without_a_reference_the_difference_is_the_parameter() -> None:
    parameter, _ = moved((7, 3), torch.float32)
    measured, against_zero = (measure_difference(parameter, r, (0.5,)) for r in (None, torch.zeros(7, 3)))
    assert measured.norm == against_zero.norm
    assert measured.small == against_zero.small
    gradient = torch.zeros(7, 3)
    add_subgradient_of_difference(parameter, None, gradient, -1.5)
    assert torch.equal(gradient, -1.5 * parameter.sign())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_gradient_is_rounded_to_its_own_dtype_once(dtype: torch.dtype) -> None:
    parameter, reference = moved((257,), dtype)
    gradient = torch.randn(257).to(dtype)
    expected = (gradient.double() + 0.3 * (parameter.double() - reference.double()).sign()).to(dtype)
    add_subgradient_of_difference(parameter, reference, gradient, 0.3)
    assert gradient.dtype == dtype
    assert torch.equal(gradient, expected)


@pytest.mark.usefixtures("_blocks")
def test_layout_does_not_matter() -> None:
    """θ and θ_pre may be views that are not contiguous."""
    parameter, reference = moved((30, 20), torch.float32)
    turned = measure_difference(parameter.T, reference.T.contiguous(), (0.5,))
    straight = measure_difference(parameter, reference, (0.5,))
    torch.testing.assert_close(turned.norm, straight.norm)
    assert turned.small == straight.small
    gradient = torch.zeros(20, 30)
    add_subgradient_of_difference(parameter.T, reference.T, gradient, 1.0)
    assert torch.equal(gradient, (parameter - reference).sign().T)


@pytest.mark.parametrize("reference", [None, torch.zeros(10)], ids=["no reference", "reference"])
def test_blocks_of_a_difference_may_be_overwritten(reference: Tensor | None) -> None:
    parameter = torch.ones(10)
    for _, block in difference_blocks(parameter, reference, [0]):
        block.zero_()
    assert torch.equal(parameter, torch.ones(10))


class Largest(TorchDispatchMode):
    """Remembers how many entries the largest new tensor has; a view of an argument is not new."""

    entries = 0

    def __torch_dispatch__(
        self, func: Callable[..., object], types: object, args: Sequence[object] = (), kwargs: dict | None = None
    ) -> object:
        made = func(*args, **(kwargs or {}))
        known = {argument.untyped_storage().data_ptr() for argument in tree_iter(args) if isinstance(argument, Tensor)}
        for tensor in tree_iter(made):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in known:
                self.entries = max(self.entries, tensor.numel())
        return made


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", [200, 2000, 60_000])
def test_no_more_than_a_block_of_the_delta_is_held(
    block: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(l1, "BLOCK_ENTRIES", block)
    A, B = factors(300, 2, 200, dtype)
    with Largest() as of_product:
        measure_product(A, B, 1.0, (0.1,))
        subgradient_of_product(A, B, 1.0)
    assert of_product.entries <= max(block, A.numel(), B.numel())
    parameter, reference = moved((6000,), dtype)
    gradient = torch.zeros_like(parameter)
    with Largest() as of_difference:
        measure_difference(parameter, reference, (0.1,))
        add_subgradient_of_difference(parameter, reference, gradient, 1.0)
    assert of_difference.entries <= block
