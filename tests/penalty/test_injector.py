"""The injector on a plain transformers Trainer: what the optimizer sees, what is logged, what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import TrainerCallback

from paft_plugin.deltas.proof import why_unproven
from paft_plugin.errors import PaftError
from paft_plugin.penalty.injector import PenaltyInjector
from paft_plugin.penalty.settings import PenaltySettings
from tests.penalty.trainers import (
    LEARNING_RATE,
    Rows,
    assert_same,
    lora_llama,
    make_trainer,
    tiny_llama,
    trainable,
    trained,
)

LAMBDA = 3e-3
PENALTIES = {
    "l1": PenaltySettings(LAMBDA),
    "l2": PenaltySettings(0.0, l2_strength=0.03),
    "both": PenaltySettings(LAMBDA, l2_strength=0.03),
}


@pytest.mark.parametrize("make", [lora_llama, tiny_llama], ids=["lora", "full"])
def test_strength_zero_is_bit_identical_to_no_penalty(make: Any, tmp_path: Path) -> None:
    plain, measured = make(), make()
    trained(plain, tmp_path / "plain", None)
    trained(measured, tmp_path / "measured", PenaltySettings(0.0))
    assert_same(plain, measured, rtol=0, atol=0)
    assert json.loads((tmp_path / "measured" / "paft.json").read_text())["steps_penalised"] == 0


@pytest.mark.parametrize("clipping", [0.0, 0.3], ids=["no clipping", "clipping"])
@pytest.mark.parametrize("make", [lora_llama, tiny_llama], ids=["lora", "full"])
def test_any_split_into_micro_batches_takes_the_same_steps(make: Any, clipping: float, tmp_path: Path) -> None:
    whole, split = make(), make()
    settings = PenaltySettings(LAMBDA)
    sizes = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
    trained(whole, tmp_path / "whole", settings, max_grad_norm=clipping)
    trained(split, tmp_path / "split", settings, max_grad_norm=clipping, **sizes)
    assert_same(whole, split, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "reentrant checkpointing"])
@pytest.mark.parametrize("make", [lora_llama, tiny_llama], ids=["lora", "full"])
def test_steps_are_those_of_the_penalised_loss(make: Any, checkpointing: bool, penalty: str, tmp_path: Path) -> None:
    """SGD written by hand on L + λ‖δ‖₁ + λ₂‖δ‖₂², with autograd through the whole δ, ends at the same weights."""
    settings = PENALTIES[penalty]
    by_hand, injected = make(), make()
    base = {name: p.clone() for name, p in trainable(by_hand).items()}
    batches: list[dict[str, Tensor]] = []
    trainer = make_trainer(
        injected,
        tmp_path,
        gradient_checkpointing=checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": True} if checkpointing else None,
    )
    inner = trainer.training_step
    trainer.training_step = lambda model, inputs, *rest: (batches.append(dict(inputs)), inner(model, inputs, *rest))[1]
    PenaltyInjector(trainer, settings).install()
    trainer.train()

    parameters = [p for p in by_hand.parameters() if p.requires_grad]
    for batch in batches:
        deltas = [m.get_delta_weight("default") for m in by_hand.modules() if isinstance(m, LoraLayer)] or [
            p - base[name] for name, p in by_hand.named_parameters()
        ]
        loss = by_hand(**batch).loss + settings.strength * sum(delta.abs().sum() for delta in deltas)
        loss += settings.l2_strength * sum(delta.square().sum() for delta in deltas)
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= LEARNING_RATE * gradient
    assert len(batches) == 4
    assert_same(by_hand, injected, rtol=1e-9, atol=1e-11)
    assert (why_unproven(tmp_path) is None) == (settings.strength > 0), "‖δ‖₂² makes nothing sparse"
    assert json.loads((tmp_path / "paft.json").read_text()).get("l2_lambda", 0) == settings.l2_strength
    last = trainer.state.log_history[-2]
    assert last["paft/penalty"] == pytest.approx(
        settings.strength * last["paft/l1_norm"] + settings.l2_strength * last.get("paft/l2_norm", 0) ** 2
    )


def test_the_penalty_is_logged_beside_a_pure_loss(tmp_path: Path) -> None:
    plain = trained(lora_llama(), tmp_path / "plain", None, max_steps=1, eval_strategy="no")
    penalised = trained(
        lora_llama(), tmp_path / "penalised", PenaltySettings(1.0, thresholds=(1e-5, 1e-3)), max_steps=3
    )
    first, *_, later, _ = penalised.state.log_history
    assert first["loss"] == plain.state.log_history[0]["loss"]  # δ was still zero, and would not be in the loss anyway
    assert later["paft/lambda"] == 1.0
    assert later["paft/penalty"] == later["paft/l1_norm"] > 0
    assert 0 <= later["paft/sparsity@1e-5"] <= later["paft/sparsity@0.001"] <= 1


def test_evaluation_loss_stays_pure(tmp_path: Path) -> None:
    trainer = trained(lora_llama(), tmp_path, PenaltySettings(10.0))
    logged = trainer.evaluate(Rows())["eval_loss"]
    with torch.no_grad():
        rows = Rows().ids
        assert logged == pytest.approx(trainer.model(input_ids=rows, labels=rows).loss.item(), rel=1e-5)
    assert not any(key.startswith("paft/") for key in trainer.state.log_history[-1])


def test_the_record_proves_what_ran(tmp_path: Path) -> None:
    model = lora_llama()
    trained(model, tmp_path, PenaltySettings(LAMBDA, thresholds=(1e-5, 1e-3)), gradient_accumulation_steps=2)
    record = json.loads((tmp_path / "paft.json").read_text())
    deltas = [m.get_delta_weight("default") for m in model.modules() if isinstance(m, LoraLayer)]
    entries = torch.cat([delta.detach().flatten() for delta in deltas]).abs()
    assert record["schema"] == 1
    assert record["finished"] is True
    assert (record["lambda"], record["l1_on"], record["steps_penalised"]) == (LAMBDA, "delta", 4)
    assert record["l1_norm"] == pytest.approx(entries.sum().item(), rel=1e-5)
    assert record["sparsity"]["1e-05"] == pytest.approx((entries <= 1e-5).float().mean().item(), abs=1e-6)
    assert len(record["tensors"]) == 3
    assert [point["step"] for point in record["history"]] == [1, 2, 3, 4]
    assert set(record["versions"]) >= {"paft-plugin", "axolotl", "torch", "peft", "transformers"}


def test_an_unfinished_run_says_so(tmp_path: Path) -> None:
    class Crash(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            raise RuntimeError("out of memory")

    trainer = make_trainer(lora_llama(), tmp_path)
    PenaltyInjector(trainer, PenaltySettings(LAMBDA)).install()
    trainer.add_callback(Crash())
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.train()
    assert json.loads((tmp_path / "paft.json").read_text())["finished"] is False


def test_a_run_that_diverges_keeps_its_record(tmp_path: Path) -> None:
    trained(tiny_llama(), tmp_path, PenaltySettings(LAMBDA), learning_rate=float("inf"), max_steps=2)
    record = json.loads((tmp_path / "paft.json").read_text())
    assert record["finished"] is True
    assert record["l1_norm"] is None
    assert record["history"][-1]["l1_norm"] is None


def test_unfreezing_during_training_is_refused(tmp_path: Path) -> None:
    """What was frozen when training began has no reference and no penalty, so it must not start to move unnoticed."""

    class Unfreeze(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, *, model: nn.Module, **_: Any) -> None:
            model.requires_grad_(True)

    trainer = make_trainer(lora_llama(), tmp_path)
    PenaltyInjector(trainer, PenaltySettings(LAMBDA)).install()
    trainer.add_callback(Unfreeze())
    with pytest.raises(PaftError, match="frozen or unfrozen during training"):
        trainer.train()


def test_an_adapter_that_starts_away_from_zero_is_refused(tmp_path: Path) -> None:
    model = lora_llama()
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "lora_B" in name).fill_(1e-9)
    with pytest.raises(PaftError, match="not zero before training"):
        PenaltyInjector(make_trainer(model, tmp_path), PenaltySettings(LAMBDA))


def test_a_scaled_gradient_gets_a_scaled_penalty(tmp_path: Path) -> None:
    """Under an fp16 GradScaler `.grad` still bears its factor when the penalty is added."""

    class Scaler:
        def get_scale(self) -> float:
            return 128.0

    models = [lora_llama(), lora_llama()]
    trainers = [make_trainer(model, tmp_path) for model in models]
    injectors = [PenaltyInjector(trainer, PENALTIES["both"]) for trainer in trainers]
    for model in models:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(0.5)
    trainers[1].accelerator.scaler = Scaler()
    for trainer, injector in zip(trainers, injectors, strict=True):
        trainer.state.max_steps = 1
        injector.begin(None)
        injector.before_optimizer_step()
    for plain, scaled in zip(*(model.parameters() for model in models), strict=True):
        if plain.grad is not None:
            torch.testing.assert_close(scaled.grad, 128 * plain.grad)
    assert injectors[0].measure() == injectors[1].measure()


def test_a_short_run_is_told_so_and_a_missed_target_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained(lora_llama(), tmp_path, PenaltySettings(1e-5, target_sparsity=0.9))
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "4 steps are few" in next(text for text in warned if text.startswith("paft_target_sparsity"))
    assert any("0.9 was missed" in text for text in warned)
    caplog.clear()
    trained(lora_llama(), tmp_path, PenaltySettings(1e-5))
    assert "paft_target_sparsity" not in caplog.text
