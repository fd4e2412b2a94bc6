"""Plain transformers Trainers on fixed rows, with the penalty or without, and the tiny models that they train.

In fp64: δ passes through zero all the time, and a sign that rounding flips there moves everything after it, in fp32 on one CPU in
a few.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from paft_plugin.penalty.injector import PenaltyInjector
from paft_plugin.penalty.settings import PenaltySettings

STEPS, SAVED, STOPPED = 14, 4, 10
IN_BACKWARD = {
    "lomo",
    "adalomo",
    "galore_adamw_layerwise",
    "galore_adamw_8bit_layerwise",
    "galore_adafactor_layerwise",
    "apollo_adamw_layerwise",
}
"""Optimizers that consume gradients during backward, as transformers calls them."""
LEARNING_RATE = 0.05
ROWS = 16


class Rows(Dataset):
    """Fixed random token rows, all of one length, so that any split into micro-batches has the same mean loss."""

    def __init__(self, count: int = ROWS) -> None:
        self.ids = torch.randint(0, 30, (count, 9), generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=30, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    ).double()
    model.loss_function = mean_cross_entropy
    return model


def mean_cross_entropy(logits: Tensor, labels: Tensor, num_items_in_batch: Any = None, **_: Any) -> Tensor:
    """As transformers', which takes it in fp32 whatever the model's dtype."""
    targets = nn.functional.pad(labels, (0, 1), value=-100)[:, 1:].flatten()
    total = nn.functional.cross_entropy(logits.flatten(0, 1), targets, reduction="sum")
    return total / ((targets != -100).sum() if num_items_in_batch is None else num_items_in_batch)


def lora_llama() -> PeftModel:
    return get_peft_model(tiny_llama(), LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "o_proj", "up_proj"]))


def make_trainer(model: nn.Module, output_dir: Path, **changes: Any) -> Trainer:
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "max_steps": 4,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "seed": 3,
        "disable_tqdm": True,
    }
    return Trainer(
        model=model, args=TrainingArguments(output_dir=str(output_dir), **(settings | changes)), train_dataset=Rows()
    )


def trained(model: nn.Module, output_dir: Path, settings: PenaltySettings | None, **changes: Any) -> Trainer:
    trainer = make_trainer(model, output_dir, **changes)
    if settings:
        PenaltyInjector(trainer, settings).install()
    trainer.train()
    return trainer


def trainable(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def assert_same(one: nn.Module, other: nn.Module, **tolerance: float) -> None:
    for name, parameter in trainable(one).items():
        torch.testing.assert_close(trainable(other)[name], parameter, **tolerance, msg=lambda t, n=name: f"{n}: {t}")


class Stop(TrainerCallback):
    """As if the machine went down in the middle of a step."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == STOPPED:
            raise KeyboardInterrupt


def trainer_with(settings: PenaltySettings | None, model: nn.Module, output_dir: Path, **changes: Any) -> Trainer:
    saving = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": SAVED, "optim": "adamw_torch"}
    trainer = make_trainer(
        model, output_dir, **{**saving, "lr_scheduler_type": "linear", "learning_rate": 0.01, **changes}
    )
    if settings:
        PenaltyInjector(trainer, settings).install()
    return trainer
