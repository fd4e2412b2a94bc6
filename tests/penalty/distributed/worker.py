"""One process of a data-parallel run: trains a tiny Llama with the penalty, case after case, and saves what came out.

    python -m torch.distributed.run --standalone --nproc-per-node 2 worker.py DIR CASE …

A case is KIND-PARALLEL-OPTIMIZER: lora, full or saved (LoRA and modules_to_save); single, ddp, fsdp2, zero1 or zero2; an
optimizer of transformers; and perhaps -target, to be steered to a sparsity.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from paft_plugin.penalty.injector import PenaltyInjector
from paft_plugin.penalty.settings import PenaltySettings

ROWS = 16
BATCH = 4
RATES = {"sgd": 0.05, "adamw_torch": 0.01}
TARGET = PenaltySettings(1e-3, target_sparsity=0.5)
CONSTANT = PenaltySettings(3e-3)


class Rows(Dataset):
    """Fixed random rows of one length: the mean over a batch is the mean over its halves."""

    def __init__(self) -> None:
        self.ids = torch.randint(0, 30, (ROWS, 9), generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


class ShardingTrainer(Trainer):
    """accelerate shards only on accelerators; everything after its choice is the same code on a CPU."""

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        state.__dict__["distributed_type"] = DistributedType.FSDP
        state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            reshard_after_forward=True,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
            state_dict_type="FULL_STATE_DICT",
            cpu_ram_efficient_loading=True,
        )
        self.is_fsdp_enabled = True


def build(kind: str) -> nn.Module:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=30, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    )
    if kind == "full":
        return model
    saved = ["lm_head"] if kind == "saved" else None
    # Reentrant checkpointing hands gradients on only if the embeddings' output wants one.
    model.enable_input_require_grads()
    targets = ["q_proj", "o_proj", "up_proj"]
    return get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets, modules_to_save=saved))


def deepspeed_config(stage: int) -> dict[str, Any]:
    import deepspeed.comm

    # With gloo, torch 2.13 refuses to gather into the views that DeepSpeed 0.18 hands it.
    deepspeed.comm.has_all_gather_into_tensor = lambda: False
    auto = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size", "gradient_clipping")
    return {
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        **dict.fromkeys(auto, "auto"),
    }


def train(case: str, directory: Path) -> None:
    kind, parallel, optimizer, *steered = case.split("-")
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    AcceleratorState._reset_state()
    arguments: dict[str, Any] = {
        "output_dir": str(directory / case),
        "per_device_train_batch_size": BATCH // processes,
        "gradient_accumulation_steps": 2,
        "max_steps": 20 if steered else 4,
        "learning_rate": RATES[optimizer],
        "lr_scheduler_type": "constant",
        "optim": optimizer,
        "max_grad_norm": 0.3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "ddp_backend": "gloo" if processes > 1 else None,
        "ddp_find_unused_parameters": False,
        "seed": 3,
        "disable_tqdm": True,
        "gradient_checkpointing": parallel != "fsdp2",
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
        "deepspeed": deepspeed_config(int(parallel[-1])) if parallel.startswith("zero") else None,
    }
    trainer_class = ShardingTrainer if parallel == "fsdp2" else Trainer
    trainer = trainer_class(model=build(kind), args=TrainingArguments(**arguments), train_dataset=Rows())
    PenaltyInjector(trainer, TARGET if steered else CONSTANT).install()
    trainer.train()
    trained = {name: p.detach() for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert all(isinstance(p, DTensor) for p in trained.values()) == (parallel == "fsdp2")
    whole = {name: p.full_tensor() if isinstance(p, DTensor) else p for name, p in trained.items()}
    if trainer.args.process_index == 0:
        save_file({name: p.clone().contiguous() for name, p in whole.items()}, directory / f"{case}.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for each in sys.argv[2:]:
        train(each, Path(sys.argv[1]))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
