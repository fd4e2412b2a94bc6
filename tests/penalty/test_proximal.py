"""The proximal step is soft-thresholding of θ − θ_pre, and what it takes to zero is θ_pre to the last bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.optimization import Adafactor

from paft_plugin.errors import PaftError
from paft_plugin.penalty import l1
from paft_plugin.penalty.proximal import shrink_, step_sizes

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
AMOUNT = 0.01
BITS = {4: torch.int32, 2: torch.int16}


def trained(dtype: torch.dtype, shape: tuple[int, ...] = (1009,)) -> tuple[Tensor, Tensor]:
    """θ after some steps from θ_pre; a quarter of its entries never moved."""
    torch.manual_seed(0)
    reference = (0.02 * torch.randn(shape)).to(dtype)
    parameter = reference.clone()
    for _ in range(20):
        parameter += (0.003 * torch.randn(shape)).to(dtype)
    parameter.view(-1)[::4] = reference.view(-1)[::4]
    return parameter, reference


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(BITS[tensor.element_size()])


def shrunk(parameter: Tensor, reference: Tensor | None, amount: float) -> Tensor:
    copy = parameter.clone()
    shrink_(copy, reference, amount)
    return copy


def soft(delta: Tensor, amount: float) -> Tensor:
    """The formula, written plainly."""
    return delta.sign() * (delta.abs() - amount).clamp(min=0)


@pytest.mark.parametrize("with_reference", [True, False])
@pytest.mark.parametrize("amount", [0.0, 1e-4, AMOUNT, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_soft_thresholding(dtype: torch.dtype, amount: float, with_reference: bool) -> None:
    parameter, reference = trained(dtype)
    origin = reference.double() if with_reference else torch.zeros(1).double()
    exact = origin + soft(parameter.double() - origin, amount)
    got = shrunk(parameter, reference if with_reference else None, amount)
    assert got.dtype == dtype
    # Rounded in fp32 on the way, where numbers are below 0.1, and to θ's dtype at the end, whose subnormals are coarser.
    own = torch.finfo(dtype)
    coarsest = max(0.1 * torch.finfo(torch.float32).eps, own.smallest_normal * own.eps)
    torch.testing.assert_close(got.double(), exact, rtol=own.eps, atol=coarsest)


def test_it_agrees_with_torchao_on_the_delta() -> None:
    """PAT's `ProxLasso` shrinks weights; given δ as its weights, it does the same."""
    prox_lasso = pytest.importorskip("torchao.prototype.pat.optim.lasso").ProxLasso
    parameter, reference = trained(torch.float32)
    delta = parameter - reference
    prox_lasso(reg_lambda=2.0).apply_(delta, AMOUNT / 2)
    ours = shrunk(parameter, reference, AMOUNT)
    torch.testing.assert_close(ours - reference, delta, rtol=0, atol=8e-9)
    assert torch.equal(ours == reference, delta == 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_small_entries_become_the_reference_bit_for_bit(dtype: torch.dtype) -> None:
    parameter, reference = trained(dtype)
    reference[:8] = -0.0
    small = (parameter.double() - reference.double()).abs() <= AMOUNT
    got = shrunk(parameter, reference, AMOUNT)
    assert 0.4 < small.double().mean() < 0.9
    assert torch.equal(bits(got)[small], bits(reference)[small])
    assert not torch.equal(bits(got)[~small], bits(parameter)[~small])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_zero_that_is_left_has_no_sign(dtype: torch.dtype) -> None:
    """Without a reference θ_pre is 0, so that too is to the last bit."""
    assert not bits(shrunk(torch.tensor([-0.25], dtype=dtype), None, 0.5)).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_entry_at_the_threshold_is_small(dtype: torch.dtype) -> None:
    parameter = torch.tensor([0.5, -0.5, 0.75, 0.0], dtype=dtype)
    assert shrunk(parameter, None, 0.5).tolist() == [0, 0, 0.25, 0]
    assert shrunk(parameter + 1, torch.ones(4, dtype=dtype), 0.5).tolist() == [1, 1, 1.25, 1]


@pytest.mark.parametrize("with_reference", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_amount_of_zero_changes_no_bit(dtype: torch.dtype, with_reference: bool) -> None:
    """As on the steps of a learning-rate warm-up that starts at 0. Where δ = 0, PAT would divide 0 by 0 there."""
    parameter, reference = trained(dtype)
    got = shrunk(parameter, reference if with_reference else None, 0.0)
    assert torch.equal(bits(got), bits(parameter))


def test_many_small_steps_are_one_large() -> None:
    """Soft-thresholding by τ, n times, is soft-thresholding by nτ: in fp32, which is why other precisions are refused."""
    parameter, reference = trained(torch.float32)
    stepwise = parameter.clone()
    for _ in range(1000):
        shrink_(stepwise, reference, AMOUNT / 1000)
    whole = shrunk(parameter, reference, AMOUNT)
    torch.testing.assert_close(stepwise, whole, rtol=0, atol=AMOUNT / 100)


@pytest.mark.parametrize("block", [1, 7, 64, 2000])
@pytest.mark.parametrize("shape", [(1,), (13, 11), (3, 5, 7)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_do_not_matter(
    dtype: torch.dtype, shape: tuple[int, ...], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameter, reference = trained(dtype, shape)
    at_once = [shrunk(parameter, given, AMOUNT) for given in (reference, None)]
    monkeypatch.setattr(l1, "BLOCK_ENTRIES", block)
    in_blocks = [shrunk(parameter, given, AMOUNT) for given in (reference, None)]
    assert torch.equal(bits(in_blocks[0]), bits(at_once[0]))
    assert torch.equal(in_blocks[1], at_once[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_more_amount_never_leaves_fewer_zeros(dtype: torch.dtype) -> None:
    parameter, reference = trained(dtype)
    amounts = [0.0, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1.0]
    zeros = [(shrunk(parameter, reference, amount) == reference).sum().item() for amount in amounts]
    assert zeros == sorted(zeros)
    assert zeros[0] < zeros[3] < zeros[-1] == parameter.numel()


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_entry_moves_away_from_the_reference_or_past_it(dtype: torch.dtype) -> None:
    parameter, reference = trained(dtype)
    before, after = parameter.double() - reference.double(), shrunk(parameter, reference, AMOUNT) - reference
    assert (after.double().abs() <= before.abs()).all()
    assert (after.double() * before >= 0).all()


def test_it_works_in_place_on_a_leaf_and_leaves_the_reference_alone() -> None:
    weights, reference = trained(torch.float32)
    parameter, kept = nn.Parameter(weights), reference.clone()
    address = parameter.data_ptr()
    shrink_(parameter, reference, 1.0)
    assert parameter.data_ptr() == address
    assert parameter.is_leaf
    assert torch.equal(parameter, kept)
    assert torch.equal(reference, kept)


def test_a_layout_that_does_not_match_the_parameters_is_followed() -> None:
    """θ_pre may be a view that is not contiguous."""
    parameter, reference = trained(torch.float32, (20, 30))
    turned = reference.T.contiguous().T
    assert not turned.is_contiguous()
    assert torch.equal(shrunk(parameter, turned, AMOUNT), shrunk(parameter, reference, AMOUNT))


def test_gradient_steps_with_it_end_at_the_minimum_of_the_penalised_loss() -> None:
    """½‖x − a‖² + λ‖x − b‖₁ has its minimum at b + soft(a − b, λ), exactly at b where |a − b| ≤ λ."""
    torch.manual_seed(0)
    a, b, strength = torch.randn(200), torch.randn(200), 0.7
    x = nn.Parameter(b.clone())
    optimizer = torch.optim.SGD([x], lr=0.3)
    for _ in range(80):
        optimizer.zero_grad()
        ((x - a).square().sum() / 2).backward()
        optimizer.step()
        shrink_(x, b, strength * step_sizes(optimizer)(x))
    torch.testing.assert_close(x.detach(), b + soft(a - b, strength), rtol=0, atol=1e-5)
    assert torch.equal(x[(a - b).abs() < strength - 1e-4], b[(a - b).abs() < strength - 1e-4])


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_the_step_size_is_the_learning_rate_of_the_parameters_group(make: Any) -> None:
    one, two, three = (nn.Parameter(torch.ones(3)) for _ in range(3))
    optimizer = make([{"params": [one]}, {"params": [two, three], "lr": 0.5}], lr=0.1)
    step_size = step_sizes(optimizer)
    assert [step_size(parameter) for parameter in (one, two, three)] == [0.1, 0.5, 0.5]


def test_the_step_size_is_that_of_the_step_just_taken() -> None:
    """A scheduler that moves the rate afterwards does not change it; the next step asks anew."""
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], lr=torch.tensor(0.25))
    taken = step_sizes(optimizer)
    optimizer.param_groups[0]["lr"].fill_(0.125)
    assert (taken(parameter), step_sizes(optimizer)(parameter)) == (0.25, 0.125)


@pytest.mark.parametrize(
    "options", [{"lr": None, "relative_step": True}, {"lr": 0.1, "scale_parameter": True}], ids=str
)
def test_an_optimizer_that_makes_its_own_step_sizes_is_refused(options: dict[str, Any]) -> None:
    settings = {"relative_step": False, "scale_parameter": False, "warmup_init": False, **options}
    optimizer = Adafactor([nn.Parameter(torch.ones(2))], **settings)
    with pytest.raises(PaftError, match=r"(relative_step|scale_parameter): Adafactor makes its step sizes"):
        step_sizes(optimizer)
