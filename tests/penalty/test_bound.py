"""A penalty that is bounded by the loss, begins late, or ends early and leaves its zeros where they are."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from paft_plugin.errors import PaftError
from paft_plugin.penalty.injector import PenaltyInjector
from paft_plugin.penalty.settings import PenaltySettings
from paft_plugin.penalty.strength import LossBound, ReferenceLoss, read_reference_loss
from tests.penalty.trainers import lora_llama, make_trainer, tiny_llama, trainable, trained

STEPS, WINDOW = 80, 4
RUN: dict[str, Any] = {
    "max_steps": STEPS,
    "logging_steps": WINDOW,
    "optim": "adamw_torch",
    "learning_rate": 0.01,
    "lr_scheduler_type": "linear",
}


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training without a penalty."""
    folder = tmp_path_factory.mktemp("dense")
    trained(lora_llama(), folder, None, **RUN, save_strategy="steps", save_steps=STEPS)
    return folder


def losses(history: list[dict[str, Any]]) -> list[float]:
    return [point["loss"] for point in history if "loss" in point]


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "paft.json").read_text())


def test_the_loss_stays_within_its_bound_and_the_delta_shrinks_as_far_as_that_allows(
    dense: Path, tmp_path: Path
) -> None:
    state = json.loads((dense / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    norms = []
    for bound in (0.02, 0.05):
        folder = tmp_path / str(bound)
        settings = PenaltySettings(1e-5, max_loss_increase=bound, reference_loss=str(dense))
        own = losses(trained(lora_llama(), folder, settings, **RUN).state.log_history)
        late = len(own) // 4
        increase = sum(own[-late:]) / late - sum(losses(state["log_history"])[-late:]) / late
        proof = record(folder)
        assert 0.2 * bound < increase < bound
        assert proof["loss_increase"] == pytest.approx(increase, abs=0.3 * bound)
        assert (proof["max_loss_increase"], proof["reference_loss"]) == (bound, str(dense))
        norms.append(proof["l1_norm"])
    assert norms[1] < 0.8 * norms[0]


def test_the_bound_comes_before_the_target(dense: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = PenaltySettings(1e-4, target_sparsity=0.99, max_loss_increase=0.05, reference_loss=str(dense))
    trained(lora_llama(), tmp_path, settings, **RUN)
    assert record(tmp_path)["loss_increase"] < 0.05
    assert "paft_max_loss_increase: 0.05 came first" in caplog.text


def test_a_late_penalty_leaves_the_steps_before_it_alone(dense: Path, tmp_path: Path) -> None:
    settings = PenaltySettings(1e-3, begin=0.5)
    own = losses(trained(lora_llama(), tmp_path, settings, **RUN).state.log_history)
    plain = losses(json.loads((dense / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())["log_history"])
    half = len(plain) // 2
    assert own[:half] == plain[:half]
    assert own[half + 1 :] != plain[half + 1 :]
    proof = record(tmp_path)
    assert [point["lambda"] > 0 for point in proof["history"]] == [step >= half for step in range(len(plain))]
    assert (proof["steps_penalised"], proof["l1_from"]) == (STEPS // 2, 0.5)


@pytest.mark.parametrize("kind", ["full", "full proximal", "factors"])
def test_what_is_zero_when_the_penalty_ends_stays_zero(kind: str, tmp_path: Path) -> None:
    model = lora_llama() if kind == "factors" else tiny_llama()
    base = {} if kind == "factors" else {name: p.clone() for name, p in trainable(model).items()}
    settings = PenaltySettings(
        0.05 if kind == "full" else 0.5,
        "factors" if kind == "factors" else "delta",
        "subgradient" if kind == "full" else "proximal",
        end=0.5,
        target_threshold=1e-3,
    )
    seen: dict[int, list[Tensor]] = {}

    class Look(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            seen[state.global_step] = [p - base.get(name, 0) for name, p in trainable(model).items()]

    trainer = make_trainer(model, tmp_path, **RUN)
    PenaltyInjector(trainer, settings).install()
    trainer.add_callback(Look())
    trainer.train()
    held, last = ([delta == 0 for delta in seen[step]] for step in (STEPS // 2, STEPS))
    assert sum(int(mask.sum()) for mask in held) > 50
    assert all(torch.equal(one, one & other) for one, other in zip(held, last, strict=True))
    moved = [one - other for one, other in zip(seen[STEPS // 2], seen[STEPS], strict=True)]
    assert max(delta.abs().max().item() for delta in moved) > 1e-3, "what is not zero trains on"
    assert record(tmp_path)["history"][-1]["lambda"] == 0


def test_a_product_cannot_be_held_at_zero(tmp_path: Path) -> None:
    with pytest.raises(PaftError, match=r"paft_l1_until: 0\.5: the entries of a product"):
        PenaltyInjector(make_trainer(lora_llama(), tmp_path), PenaltySettings(1e-3, end=0.5))


def test_a_reference_that_is_of_another_run_or_none_is_refused(dense: Path, tmp_path: Path) -> None:
    settings = PenaltySettings(1e-3, max_loss_increase=0.1, reference_loss=str(dense))
    with pytest.raises(PaftError, match=f"until step {STEPS} of {STEPS}, and this run has 12"):
        trained(lora_llama(), tmp_path, settings, **{**RUN, "max_steps": 12})
    with pytest.raises(PaftError, match="holds no checkpoint"):
        read_reference_loss(str(tmp_path))
    assert read_reference_loss("7e-2").at(3) == read_reference_loss(0.07).at(4) == 0.07
    with pytest.raises(PaftError, match="nan is no loss"):
        read_reference_loss(float("nan"))


def test_checkpoints_of_other_names_are_no_steps(dense: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(dense, tmp_path / "copied")
    shutil.copytree(copied / f"checkpoint-{STEPS}", copied / "checkpoint-best")
    assert read_reference_loss(str(copied)) == read_reference_loss(str(dense))


@pytest.mark.parametrize("loss", [math.inf, math.nan])
def test_a_loss_that_is_no_number_is_left_out(loss: float) -> None:
    """fp16 has such steps, which its scaler skips; the bound would hold no more, or never give way again."""
    one, other = (LossBound(1e-4, 0.1, ReferenceLoss({}, end=1.0)) for _ in range(2))
    for step, taken in enumerate((1.2, loss, 1.3)):
        assert one.take(step, taken) == math.isfinite(taken)
    for step, taken in ((0, 1.2), (2, 1.3)):
        other.take(step, taken)
    assert one.increase == other.increase


def test_a_window_without_a_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PaftError, match="none of the 40 steps lies between them"):
        trained(lora_llama(), tmp_path, PenaltySettings(1e-3, begin=0.995), **{**RUN, "max_steps": 40})
