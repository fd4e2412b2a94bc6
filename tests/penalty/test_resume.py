"""A run that stops and resumes from a checkpoint ends, bit for bit, where an uninterrupted one ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from paft_plugin.errors import PaftError
from paft_plugin.penalty.settings import PenaltySettings
from tests.penalty.trainers import (
    SAVED,
    STEPS,
    STOPPED,
    Stop,
    lora_llama,
    tiny_llama,
    trainable,
    trainer_with,
)

CASES: dict[str, tuple[Any, PenaltySettings]] = {
    "lora": (lora_llama, PenaltySettings(3e-3, warmup_ratio=0.5)),
    "full": (tiny_llama, PenaltySettings(3e-3)),
    "target": (lora_llama, PenaltySettings(3e-3, target_sparsity=0.5)),
    "proximal": (tiny_llama, PenaltySettings(3e-2, mode="proximal")),
    "bound": (lora_llama, PenaltySettings(3e-3, target_sparsity=0.5, max_loss_increase=0.05, reference_loss=3.3)),
    "late": (lora_llama, PenaltySettings(3e-3, begin=0.3)),
    "held": (tiny_llama, PenaltySettings(3e-2, mode="proximal", end=0.6)),
    "proximal target": (tiny_llama, PenaltySettings(3e-2, mode="proximal", target_sparsity=0.5)),
}


def stopped(settings: PenaltySettings | None, model: nn.Module, output_dir: Path) -> None:
    trainer = trainer_with(settings, model, output_dir)
    trainer.add_callback(Stop())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()


def record(output_dir: Path) -> dict[str, Any]:
    return json.loads((output_dir / "paft.json").read_text())


@pytest.mark.parametrize("restores_callbacks", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    case: str, restores_callbacks: bool, tmp_path: Path
) -> None:
    make, settings = CASES[case]
    straight, resumed = make(), make()
    trainer_with(settings, straight, tmp_path / "straight").train()
    stopped(settings, make(), tmp_path / "resumed")
    again = trainer_with(
        settings, resumed, tmp_path / "resumed", restore_callback_states_from_checkpoint=restores_callbacks
    )
    again.train(resume_from_checkpoint=True)
    for name, parameter in trainable(straight).items():
        assert torch.equal(trainable(resumed)[name], parameter), name
    expected = record(tmp_path / "straight")
    assert record(tmp_path / "resumed") == expected | {"resumed_at_step": SAVED * (STOPPED // SAVED)}
    assert len(expected["history"]) == STEPS


def test_the_reference_is_the_base_model_and_not_the_checkpoint(tmp_path: Path) -> None:
    stopped(PenaltySettings(0.0), tiny_llama(), tmp_path)
    resumed, base = tiny_llama(), tiny_llama()
    trainer_with(PenaltySettings(0.0), resumed, tmp_path).train(resume_from_checkpoint=True)
    moved = sum(
        (p - q).abs().double().sum().item() for p, q in zip(resumed.parameters(), base.parameters(), strict=True)
    )
    assert record(tmp_path)["l1_norm"] == pytest.approx(moved, rel=1e-6)


def test_a_checkpoint_of_a_run_without_the_penalty_is_refused(tmp_path: Path) -> None:
    stopped(None, lora_llama(), tmp_path)
    with pytest.raises(PaftError, match="written without the penalty"):
        trainer_with(PenaltySettings(1e-3), lora_llama(), tmp_path).train(resume_from_checkpoint=True)


def test_a_checkpoint_of_a_run_without_a_target_is_refused(tmp_path: Path) -> None:
    stopped(PenaltySettings(1e-3), lora_llama(), tmp_path)
    trainer = trainer_with(PenaltySettings(1e-3, target_sparsity=0.5), lora_llama(), tmp_path)
    with pytest.raises(PaftError, match="paft_target_sparsity"):
        trainer.train(resume_from_checkpoint=True)
