"""An optimizer or a trainer that leaves the penalty no time between backward and step is refused, never used in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from paft_plugin.errors import PaftError
from paft_plugin.penalty.injector import PenaltyInjector
from paft_plugin.penalty.settings import PenaltySettings
from tests.penalty.trainers import (
    IN_BACKWARD,
    Rows,
    lora_llama,
    make_trainer,
)


@pytest.mark.parametrize("name", [one.value for one in OptimizerNames])
def test_those_that_step_within_backward_are_refused_by_the_name_of_the_setting(name: str, tmp_path: Path) -> None:
    """All the others are let through: `tests/end_to_end/test_optimizers.py` trains with them."""
    trainer = make_trainer(lora_llama(), tmp_path, optim=name)
    if name in IN_BACKWARD:
        with pytest.raises(PaftError, match=f"^optim: {name}: .* such as adamw_torch$"):
            PenaltyInjector(trainer, PenaltySettings(1e-3))
    else:
        PenaltyInjector(trainer, PenaltySettings(1e-3))


class StepsInBackward(torch.optim.SGD):
    """As layer-wise optimizers do it: a hook steps each parameter as soon as its gradient is there, and frees the gradient."""

    def __init__(self, parameters: list[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, lr=lr)
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._consume)

    def _consume(self, parameter: nn.Parameter) -> None:
        parameter.data -= self.param_groups[0]["lr"] * parameter.grad
        parameter.grad = None


def test_an_optimizer_object_that_hooks_into_backward_is_refused(tmp_path: Path) -> None:
    """No setting names it, so the hooks are what gives it away."""
    model = lora_llama()
    optimizer = StepsInBackward([one for one in model.parameters() if one.requires_grad], lr=0.05)
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True, max_steps=1)
    trainer = Trainer(model=model, args=arguments, train_dataset=Rows(), optimizers=(optimizer, None))
    PenaltyInjector(trainer, PenaltySettings(1e-3)).install()
    with pytest.raises(PaftError, match=r"takes gradients away during backward.*q_proj\.lora_A.* and 3 more"):
        trainer.train()


class StepsInsideTraining(Trainer):
    """As LOMO does it through accelerate: every parameter is stepped within `training_step`, and no gradient outlives it."""

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.data -= self.args.learning_rate * parameter.grad
                parameter.grad = None
        return loss


def test_a_step_that_leaves_no_gradient_is_refused(tmp_path: Path) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True, max_steps=1, optim="sgd")
    trainer = StepsInsideTraining(model=lora_llama(), args=arguments, train_dataset=Rows())
    PenaltyInjector(trainer, PenaltySettings(1e-3)).install()
    with pytest.raises(PaftError, match="no gradient is left when the optimizer step is due"):
        trainer.train()


@pytest.mark.parametrize("times", [0, 2])
def test_a_trainer_that_steps_without_the_penalty_or_with_it_twice_is_stopped(times: int, tmp_path: Path) -> None:
    """Another wrapper of `training_step` that came later, and does not call the one it found exactly once."""
    trainer = make_trainer(lora_llama(), tmp_path)
    bare = trainer.training_step
    PenaltyInjector(trainer, PenaltySettings(1e-3)).install()
    ours = trainer.training_step

    def training_step(*args: Any, **kwargs: Any) -> torch.Tensor:
        return bare(*args, **kwargs) if times == 0 else ours(*args, **kwargs) + ours(*args, **kwargs)

    trainer.training_step = training_step
    with pytest.raises(PaftError, match=f"^Trainer: the penalty went {times} times into the optimizer step"):
        trainer.train()
