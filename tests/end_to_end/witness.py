"""An axolotl plugin that writes down which gradient the optimizer is given, and which part of it a backward pass made.

Loaded by name (`plugins: [witness.Witness]`) in the processes that `sweeps.py` starts. It knows nothing of paft_plugin: what is
in `.grad` when `optimizer.step()` begins and was put there by no backward pass is what something else has added.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch
from axolotl.integrations.base import BasePlugin
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

FOLDER = "witness"


class Witness(BasePlugin):
    """Writes `witness/step-N.safetensors` into the output directory as the N-th optimizer step begins.

    For every trainable parameter: `parameter/NAME`, `task/NAME` (what the backward passes added since the last step, fp64) and
    `seen/NAME` (`.grad` as the optimizer's own `step` finds it). The metadata names the optimizer's class.
    """

    def register(self, cfg: dict) -> None:
        """Spare axolotl's garbage collections, five a run, the walk over all that is imported: most of a tiny run's time."""
        gc.freeze()

    def post_trainer_create(self, cfg: Any, trainer: Trainer) -> None:
        """Watch this trainer."""
        trainer.add_callback(Watch(trainer))


class Watch(TrainerCallback):
    """Watches one run."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._task: dict[str, Tensor] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Put the hooks in: only now is there an optimizer."""
        accelerator = self._trainer.accelerator
        backward = accelerator.backward

        def watched_backward(*arguments: Any, **keywords: Any) -> None:
            before = {name: _gradient(parameter) for name, parameter in self._parameters().items()}
            backward(*arguments, **keywords)
            for name, parameter in self._parameters().items():
                self._task[name] = self._task.get(name, 0.0) + _gradient(parameter) - before[name]

        accelerator.backward = watched_backward
        self._trainer.optimizer.optimizer.register_step_pre_hook(self._write)

    def _write(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        tensors: dict[str, Tensor] = {}
        for name, parameter in self._parameters().items():
            tensors[f"parameter/{name}"] = parameter.detach().clone()
            tensors[f"task/{name}"] = self._task[name]
            tensors[f"seen/{name}"] = _gradient(parameter)
        self._task.clear()
        step = self._trainer.state.global_step + 1
        path = Path(self._trainer.args.output_dir) / FOLDER / f"step-{step}.safetensors"
        path.parent.mkdir(exist_ok=True)
        save_file(tensors, path, metadata={"optimizer": type(optimizer).__name__})

    def _parameters(self) -> dict[str, nn.Parameter]:
        return {name: one for name, one in self._trainer.model.named_parameters() if one.requires_grad}


def _gradient(parameter: nn.Parameter) -> Tensor:
    """`.grad` as it is now, in fp64; no gradient yet is 0."""
    return torch.zeros_like(parameter, dtype=torch.float64) if parameter.grad is None else parameter.grad.double()
