"""Soft-thresholding inside a run: after each optimizer step, by λ × that step's learning rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paft_plugin.errors import PaftError
from paft_plugin.penalty.injector import PenaltyInjector
from paft_plugin.penalty.settings import PenaltySettings
from tests.penalty.trainers import (
    LEARNING_RATE,
    assert_same,
    lora_llama,
    make_trainer,
    tiny_llama,
    trainable,
    trained,
)

STRENGTH = 0.05


def proximal(strength: float, **changes: Any) -> PenaltySettings:
    return PenaltySettings(strength, mode="proximal", thresholds=(0.0, 1e-5), **changes)


def base_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.clone() for name, parameter in trainable(model).items()}


@pytest.mark.parametrize(("make", "l1_on"), [(tiny_llama, "delta"), (lora_llama, "factors")], ids=["full", "factors"])
def test_strength_zero_is_bit_identical_to_no_penalty(make: Any, l1_on: Any, tmp_path: Path) -> None:
    plain, measured = make(), make()
    trained(plain, tmp_path / "plain", None)
    trained(measured, tmp_path / "measured", proximal(0.0, l1_on=l1_on))
    assert_same(plain, measured, rtol=0, atol=0)


def test_steps_are_those_of_proximal_gradient_descent(tmp_path: Path) -> None:
    by_hand, injected = tiny_llama(), tiny_llama()
    base = base_of(by_hand)
    batches: list[dict[str, Tensor]] = []
    trainer = make_trainer(injected, tmp_path, lr_scheduler_type="linear")
    inner = trainer.training_step
    trainer.training_step = lambda model, inputs, *rest: (batches.append(dict(inputs)), inner(model, inputs, *rest))[1]
    PenaltyInjector(trainer, proximal(STRENGTH)).install()
    trainer.train()
    for step, batch in enumerate(batches):
        rate = LEARNING_RATE * (1 - step / len(batches))
        gradients = torch.autograd.grad(by_hand(**batch).loss, list(by_hand.parameters()))
        with torch.no_grad():
            for (name, parameter), gradient in zip(by_hand.named_parameters(), gradients, strict=True):
                delta = parameter - rate * gradient - base[name]
                parameter.copy_(base[name] + delta.sign() * (delta.abs() - rate * STRENGTH).clamp(min=0))
    assert_same(by_hand, injected, rtol=1e-9, atol=1e-11)


def test_delta_is_exactly_zero_where_it_should_be(tmp_path: Path) -> None:
    model = tiny_llama()
    base = base_of(model)
    trainer = trained(model, tmp_path, proximal(0.2), optim="adamw_torch", learning_rate=0.01, max_steps=10)
    exact = sum((parameter == base[name]).sum().item() for name, parameter in trainable(model).items())
    share = exact / sum(parameter.numel() for parameter in model.parameters())
    assert 0.01 < share < 1
    assert trainer.state.log_history[-2]["paft/sparsity@0"] == pytest.approx(share, abs=1e-6)


def test_more_strength_more_exact_zeros(tmp_path: Path) -> None:
    shares = []
    for strength in (0.0, 0.02, 0.2, 20.0):
        settings = proximal(strength, l1_on="factors")
        trainer = trained(lora_llama(), tmp_path, settings, optim="adamw_torch", learning_rate=0.01, max_steps=10)
        shares.append(trainer.state.log_history[-2]["paft/sparsity@0"])
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] == 1


def test_a_step_that_the_scaler_skipped_is_not_shrunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(tiny_llama(), tmp_path)
    injector = PenaltyInjector(trainer, proximal(1.0))
    trainer.create_optimizer()
    trainer.state.max_steps = 1
    injector.begin(None)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(1.0)
    injector.before_optimizer_step()
    moved = base_of(trainer.model)
    monkeypatch.setattr(type(trainer.accelerator), "optimizer_step_was_skipped", True)
    injector.after_optimizer_step()
    assert all(torch.equal(parameter, moved[name]) for name, parameter in trainable(trainer.model).items())
    assert injector.record.steps_penalised == 0


def test_a_product_has_no_proximal_step(tmp_path: Path) -> None:
    with pytest.raises(PaftError, match="paft_l1_on: factors"):
        PenaltyInjector(make_trainer(lora_llama(), tmp_path), proximal(STRENGTH))


def test_low_precision_would_round_the_step_away(tmp_path: Path) -> None:
    with pytest.raises(PaftError, match=r"train in fp32.*embed_tokens"):
        PenaltyInjector(make_trainer(tiny_llama().bfloat16(), tmp_path), proximal(STRENGTH))


def test_an_optimizer_that_averages_weights_of_its_own_would_undo_the_step(tmp_path: Path) -> None:
    with pytest.raises(PaftError, match=r"^optim: schedule_free_adamw: it averages weights"):
        PenaltyInjector(make_trainer(tiny_llama(), tmp_path, optim="schedule_free_adamw"), proximal(STRENGTH))
