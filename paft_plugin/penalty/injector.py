"""Adding the penalty to a trainer's steps.

The subgradient of λ‖δ‖₁ goes into `.grad` after the last micro-batch's backward: after gradient accumulation, before clipping
and the optimizer, once per optimizer step. Nothing enters the loss, so `loss`, `eval_loss` and whatever is derived from them
stay pure, and no autograd graph or gradient-checkpointing hook ever sees the penalty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from paft_plugin.errors import PaftError, some
from paft_plugin.penalty.l1 import L1Pass
from paft_plugin.penalty.live import L1On, LiveDelta, find_live_deltas, take_references
from paft_plugin.penalty.record import Measurement, Record
from paft_plugin.thresholds import threshold_label


@dataclass(frozen=True)
class PenaltySettings:
    """What a user chooses."""

    strength: float
    """λ ≥ 0, in units of the task loss per unit of ‖δ‖₁; 0 measures and changes nothing."""
    l1_on: L1On = "delta"
    thresholds: tuple[float, ...] = (1e-5,)


class PenaltyInjector:
    """Holds one run's penalty: its live deltas, their references and its record."""

    def __init__(self, trainer: Trainer, settings: PenaltySettings) -> None:
        """Find the deltas of `trainer`'s model, which still holds the base model's weights.

        Raises:
            PaftError: if the delta can't be penalised exactly.
        """
        _refuse_other_than_one_process(trainer)
        self._trainer = trainer
        self._settings = settings
        self._references = take_references(trainer.model)
        deltas = find_live_deltas(trainer.model, self._references, settings.l1_on)
        _refuse_nonzero_start(deltas)
        self._live: list[LiveDelta] | None = None
        self._trainable = 0
        self._last = measure(deltas, settings.thresholds)
        self.record = Record(
            strength=settings.strength,
            l1_on=settings.l1_on,
            tensors=[delta.name for delta in deltas],
            entries=self._last.entries,
        )

    def install(self) -> None:
        """Wrap the trainer *instance*, so that any trainer class, and any other plugin's, works the same."""
        trainer = self._trainer
        inner_step, inner_log = trainer.training_step, trainer.log

        @wraps(inner_step)
        def training_step(*args: Any, **kwargs: Any) -> Tensor:
            loss = inner_step(*args, **kwargs)
            if trainer.accelerator.sync_gradients:
                self._penalise()
            return loss

        @wraps(inner_log)
        def log(logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
            if "loss" in logs:
                logs.update(self._metrics())
                self.record.remember(trainer.state.global_step, self._last)
            inner_log(logs, *args, **kwargs)

        trainer.training_step = training_step
        trainer.log = log
        trainer.add_callback(RecordCallback(self))

    def measure_final(self) -> None:
        """Measure the delta as the last optimizer step left it."""
        self.record.final = measure(self._deltas(), self._settings.thresholds)

    def _deltas(self) -> list[LiveDelta]:
        trainable = sum(parameter.requires_grad for parameter in self._trainer.model.parameters())
        # Looked up at the first step, not before: some wrappers replace parameters when training starts.
        if self._live is None:
            self._live = find_live_deltas(self._trainer.model, self._references, self._settings.l1_on)
            self._trainable = trainable
        elif trainable != self._trainable:
            raise PaftError(
                "parameters were frozen or unfrozen during training, so the delta is not the one that is penalised: "
                "turn off what does that (LISA, gradual unfreezing)"
            )
        return self._live

    def _penalise(self) -> None:
        strength = self._settings.strength
        if strength == 0:
            self._last = measure(self._deltas(), self._settings.thresholds)
            return
        # Under fp16 the gradients still bear the scaler's factor here; it is divided out before clipping.
        scaler = getattr(self._trainer.accelerator, "scaler", None)
        scaled = strength * scaler.get_scale() if scaler is not None else strength
        self._last = penalise(self._deltas(), scaled, self._settings.thresholds)
        self.record.steps_penalised += 1

    def _metrics(self) -> dict[str, float]:
        shares = {f"paft/sparsity@{threshold_label(t)}": share for t, share in self._last.sparsity.items()}
        return {
            "paft/l1_norm": self._last.l1_norm,
            "paft/penalty": self._settings.strength * self._last.l1_norm,
            "paft/lambda": self._settings.strength,
            **shares,
        }


def _refuse_other_than_one_process(trainer: Trainer) -> None:
    if trainer.args.world_size > 1 or trainer.args.n_gpu > 1 or trainer.is_deepspeed_enabled:
        raise PaftError(
            "the L1 penalty runs in a single process on one device so far, and this run has several: "
            "set CUDA_VISIBLE_DEVICES to one device, and remove fsdp and deepspeed from the config"
        )


def _refuse_nonzero_start(deltas: Sequence[LiveDelta]) -> None:
    moved = [delta.name for delta in deltas if measure([delta], (0.0,)).sparsity[0.0] < 1]
    if moved:
        raise PaftError(
            "the delta is not zero before training, so it is not θ − θ_pre: start from a fresh adapter with "
            f"peft_init_lora_weights: true. Not zero: {some(moved)}"
        )


class RecordCallback(TrainerCallback):
    """Keeps `paft.json` in the output directory true to what has run so far."""

    def __init__(self, injector: PenaltyInjector) -> None:
        self._injector = injector

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._injector.record.resumed_at_step = state.global_step
        self._write(args, state)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._write(args, state)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._injector.measure_final()
        self._write(args, state)

    def _write(self, args: TrainingArguments, state: TrainerState) -> None:
        if state.is_world_process_zero:
            self._injector.record.write(Path(args.output_dir))


def measure(deltas: Sequence[LiveDelta], thresholds: Sequence[float]) -> Measurement:
    """Norm and sparsity of all deltas together, changing nothing."""
    return _sum_up([delta.measure(thresholds) for delta in deltas], thresholds)


def penalise(deltas: Sequence[LiveDelta], strength: float, thresholds: Sequence[float]) -> Measurement:
    """`measure`, and add strength × subgradient of the norm into every parameter's `.grad`."""
    return _sum_up([delta.penalise(strength, thresholds) for delta in deltas], thresholds)


def _sum_up(passes: Sequence[L1Pass], thresholds: Sequence[float]) -> Measurement:
    # Stacked before they are read, so that a GPU is waited for once and not once a delta.
    norm = torch.stack([one.norm for one in passes]).sum().item()
    small = torch.stack([one.small for one in passes]).sum(0).tolist()
    entries = sum(one.entries for one in passes)
    return Measurement(norm, {t: count / entries for t, count in zip(thresholds, small, strict=True)}, entries)
