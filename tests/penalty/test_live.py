"""Live deltas: what is penalised as factors, what adds up, what a step shrinks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn

from paft_plugin.penalty.find import find_live_deltas, take_references, trained_themselves
from paft_plugin.penalty.live import FullDelta, LowRankDelta, Shrinkable, measure
from paft_plugin.penalty.settings import L1On
from tests.penalty.models import copies, live, move, tiny_llama, tiny_mixtral, trainable, with_lora


def mixed() -> PeftModel:
    """Low-rank, fused-expert and full deltas in one model."""
    return with_lora(
        tiny_mixtral(3),
        target_modules=["q_proj", "o_proj"],
        target_parameters=["experts.gate_up_proj", "experts.down_proj"],
        modules_to_save=["lm_head"],
    )


def moved(l1_on: L1On = "delta") -> tuple[PeftModel, list[Any]]:
    model = mixed()
    deltas = live(model, l1_on)
    move(model)
    return model, deltas


def test_factors_penalise_a_and_b_but_sparsity_stays_that_of_the_delta() -> None:
    model, products = moved()
    factors = find_live_deltas(
        model, {delta.name: delta.reference for delta in products if hasattr(delta, "reference")}, "factors"
    )
    for product, factor in zip(products, factors, strict=True):
        assert (factor.name, factor.entries) == (product.name, product.entries)
        assert factor.measure((0.3, 1.0)).small.tolist() == product.measure((0.3, 1.0)).small.tolist()
    of_factors = sum(p.detach().double().abs().sum() for name, p in trainable(model).items() if "lora_" in name)
    of_copy = products[-1].measure(()).norm.item()
    assert measure(factors, ()).l1_norm == pytest.approx(of_factors.item() + of_copy, rel=1e-6)
    for delta in factors:
        delta.add_subgradient(0.5)
    for name, parameter in trainable(model).items():
        if "lora_" in name:
            assert torch.equal(parameter.grad, 0.5 * parameter.detach().sign())


@pytest.mark.parametrize("l1_on", ["delta", "factors"])
def test_the_whole_is_the_sum_of_its_deltas(l1_on: L1On) -> None:
    _, deltas = moved(l1_on)
    whole = measure(deltas, (0.3, 1.0))
    parts = [delta.measure((0.3, 1.0)) for delta in deltas]
    assert whole.entries == sum(delta.entries for delta in deltas)
    assert whole.l1_norm == pytest.approx(sum(part.norm.item() for part in parts), rel=1e-12)
    for k, threshold in enumerate((0.3, 1.0)):
        assert whole.sparsity[threshold] == sum(part.small[k].item() for part in parts) / whole.entries
    assert measure(deltas, ()).sparsity == {}


@pytest.mark.parametrize("l1_on", ["delta", "factors"])
def test_the_subgradient_is_added_to_what_is_there(l1_on: L1On) -> None:
    """Twice at λ is once at 2λ, on top of the task's gradients; a λ of 0 adds nothing."""
    model, deltas = moved(l1_on)
    task = {name: torch.randn_like(parameter) for name, parameter in trainable(model).items()}

    def with_penalty(*strengths: float) -> dict[str, torch.Tensor]:
        for name, parameter in trainable(model).items():
            parameter.grad = task[name].clone()
        for strength in strengths:
            for delta in deltas:
                delta.add_subgradient(strength)
        return {name: parameter.grad.clone() for name, parameter in trainable(model).items()}

    twice, once, none = with_penalty(0.1, 0.1), with_penalty(0.2), with_penalty(0.0)
    for name in task:
        torch.testing.assert_close(twice[name], once[name], rtol=1e-5, atol=1e-5)
        assert not torch.equal(once[name], task[name])
        assert torch.equal(none[name], task[name])


@pytest.mark.parametrize("l1_on", ["delta", "factors"])
def test_what_is_returned_is_the_square_of_the_subgradients_norm(l1_on: L1On) -> None:
    """Without λ, and without what a frozen factor does not get."""
    model, deltas = moved(l1_on)
    next(p for name, p in model.named_parameters() if "lora_A" in name).requires_grad_(False)
    for delta in deltas:
        model.zero_grad(set_to_none=True)
        returned = delta.add_subgradient(0.5)
        squares = [p.grad.double().square().sum() for p in model.parameters() if p.grad is not None]
        assert returned.item() == pytest.approx(sum(squares).item() / 0.5**2, rel=1e-5)


@pytest.mark.parametrize("l1_on", ["delta", "factors"])
def test_measuring_and_penalising_leave_the_parameters_alone(l1_on: L1On) -> None:
    model, deltas = moved(l1_on)
    before = copies(model)
    measure(deltas, (0.5,))
    for delta in deltas:
        delta.add_subgradient(1.0)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("l1_on", ["delta", "factors"])
def test_a_frozen_factor_gets_no_gradient_and_is_not_shrunk(l1_on: L1On) -> None:
    model, _ = moved()
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad_(False)
    deltas = live(model, l1_on)
    before = copies(model)
    for delta in deltas:
        delta.add_subgradient(1.0)
        if isinstance(delta, Shrinkable):
            delta.shrink(0.1, lambda _: 1.0)
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad
        if "lora_A" in name:
            assert torch.equal(parameter, before[name])


def test_a_delta_of_zero_is_left_alone() -> None:
    """A fresh adapter: B = 0, so neither A nor B is pulled anywhere."""
    model = mixed()
    for delta in live(model):
        delta.add_subgradient(1.0)
    assert not any(parameter.grad.any() for parameter in trainable(model).values())


@pytest.mark.parametrize("place", ["device", "host", "auto"])
def test_where_the_reference_is_kept_does_not_matter(place: Any) -> None:
    model = tiny_llama().bfloat16()
    base = copies(model)
    deltas = find_live_deltas(model, take_references(trained_themselves(model), place), "delta")
    move(model)
    norm = sum((p.double() - base[name].double()).abs().sum().item() for name, p in model.named_parameters())
    assert measure(deltas, ()).l1_norm == pytest.approx(norm, rel=1e-6)


def soft(delta: torch.Tensor, amount: float) -> torch.Tensor:
    return delta.sign() * (delta.abs() - amount).clamp(min=0)


@pytest.mark.parametrize("make", [mixed, tiny_llama], ids=["factors", "full"])
def test_shrinking_soft_thresholds_by_strength_times_each_parameters_step_size(make: Any) -> None:
    model: nn.Module = make()
    base = copies(model)
    deltas = live(model, "factors")
    move(model)
    before = copies(model)
    steps = {id(parameter): 0.1 * (1 + k % 5) for k, parameter in enumerate(trainable(model).values())}
    for delta in deltas:
        assert isinstance(delta, Shrinkable)
        delta.shrink(2.0, lambda parameter: steps[id(parameter)])
    for name, parameter in model.named_parameters():
        origin = torch.zeros_like(base[name]) if "lora_" in name else base[name]
        amount = 2 * steps.get(id(parameter), 0.0)
        torch.testing.assert_close(parameter.detach(), origin + soft(before[name] - origin, amount))
    assert measure(deltas, ()).l1_norm > 0


@pytest.mark.parametrize("action", ["add_subgradient", "shrink"])
def test_a_parameter_that_is_not_contiguous_is_penalised_too(action: str) -> None:
    """Channels-last convolutions; autograd gives a gradient its parameter's layout."""
    base = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    weight = nn.Parameter(base + 1)
    delta = FullDelta("weight", weight, base.contiguous())
    if action == "shrink":
        delta.shrink(0.25, lambda _: 1.0)
        torch.testing.assert_close(weight.detach(), base + 0.75)
    else:
        delta.add_subgradient(0.25)
        assert torch.equal(weight.grad, torch.full_like(base, 0.25))


def test_a_product_has_no_proximal_step() -> None:
    deltas = live(mixed())
    assert [isinstance(delta, Shrinkable) for delta in deltas] == [False] * (len(deltas) - 1) + [True]
    assert isinstance(deltas[0], LowRankDelta)
