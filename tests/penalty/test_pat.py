"""torchao's prototype PAT (pruning by proximal maps) beside our proximal step: the same map; another optimizer around it.

PAT prunes weights. What is handed to it here as weights is δ, so that both penalise the same thing.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from paft_plugin.penalty.proximal import shrink_, step_sizes

pat = pytest.importorskip("torchao.prototype.pat.optim")

RATE, STRENGTH = 0.25, 0.7


def delta_and_reference(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return 0.01 * torch.randn(40, 50, dtype=dtype), 0.02 * torch.randn(40, 50, dtype=dtype)


@pytest.mark.parametrize("amount", [1e-4, 1e-2, 1.0])
def test_shrinking_is_its_map_on_the_delta(amount: float) -> None:
    delta, reference = delta_and_reference(torch.float64)
    ours = reference + delta
    delta = ours - reference  # as θ can hold it
    shrink_(ours, reference, amount)
    pat.ProxLasso(reg_lambda=STRENGTH).apply_(delta, amount / STRENGTH)
    torch.testing.assert_close(ours - reference, delta, rtol=0, atol=1e-16)
    assert torch.equal(ours == reference, delta == 0)


def test_its_map_on_the_weights_would_prune_the_base_model() -> None:
    delta, reference = delta_and_reference(torch.float64)
    weights = reference + delta
    pat.ProxLasso(reg_lambda=1.0).apply_(weights, 0.01)
    assert (weights == 0).double().mean() > 0.2  # where θ_pre was not


def test_its_map_does_not_bear_a_step_of_nothing() -> None:
    """Where δ = 0 and γ = 0, as in a warm-up's first step, it divides 0 by 0; ours leaves every bit."""
    theirs, ours = torch.zeros(3), torch.zeros(3)
    pat.ProxLasso(reg_lambda=1.0).apply_(theirs, 0.0)
    shrink_(ours, torch.zeros(3), 0.0)
    assert theirs.isnan().all()
    assert torch.equal(ours, torch.zeros(3))


def descend(aims: list[Tensor], wrap: bool) -> tuple[Tensor, torch.optim.Optimizer]:
    """Steps on ½‖x − aim‖² + λ‖x‖₁, one for each aim, by torchao's optimizer or by ours, from x = 0."""
    x = nn.Parameter(torch.zeros_like(aims[0]))
    base = torch.optim.SGD([{"params": [x], "prox_type": "ProxLasso", "group_type": "ElemGrouper"}], lr=RATE)
    optimizer = pat.PruneOptimizer(base, reg_lambda=STRENGTH) if wrap else base
    for aim in aims:
        base.zero_grad()
        ((x - aim).square().sum() / 2).backward()
        optimizer.step()
        if not wrap:
            shrink_(x, None, STRENGTH * step_sizes(base)(x))
    return x.detach(), base


def test_its_optimizer_ends_at_the_same_minimum_and_holds_a_copy_more() -> None:
    torch.manual_seed(0)
    aim = torch.randn(200, dtype=torch.float64)
    minimum = aim.sign() * (aim.abs() - STRENGTH).clamp(min=0)
    (theirs, wrapped), (ours, plain) = (descend([aim] * 400, wrap) for wrap in (True, False))
    for end in (theirs, ours):
        torch.testing.assert_close(end, minimum, rtol=0, atol=1e-12)
        assert torch.equal(end == 0, minimum == 0)
    assert ["latent" in state for state in wrapped.state.values()] == [True]
    assert not any("latent" in state for state in plain.state.values())


def test_its_optimizer_takes_longer_to_change_its_mind() -> None:
    """It soft-thresholds an unshrunk copy by λ·Σηₜ, which grows with every step; we what the step before left, by ληₜ."""
    torch.manual_seed(0)
    aim = torch.randn(200, dtype=torch.float64)
    minimum = -aim.sign() * (aim.abs() - STRENGTH).clamp(min=0)
    theirs, ours = (descend([aim] * 50 + [-aim] * 30, wrap)[0] for wrap in (True, False))
    torch.testing.assert_close(ours, minimum, rtol=0, atol=0.01)
    assert (theirs - minimum).abs().max() > 0.1
