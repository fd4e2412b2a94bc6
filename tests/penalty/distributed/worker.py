"""One process of a data-parallel run: trains a tiny Llama with the penalty, case after case, and records every step.

    python -m torch.distributed.run --standalone --nproc-per-node 2 worker.py DIR CASE …

A case is KIND-PARALLEL, and perhaps -WAY. KIND is lora, full, saved (LoRA and modules_to_save) or frozen (full, but for some
parameters); PARALLEL is single, ddp, fsdp2, zero1 or zero2; WAY is proximal, target (steered to a sparsity), resumed (stopped
after two steps and resumed from its checkpoint), inspected (every three steps) or bf16.
"""

from __future__ import annotations

import json
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
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from paft_plugin.penalty.injector import PenaltyInjector
from paft_plugin.penalty.settings import PenaltySettings
from tests.penalty.trainers import Rows, mean_cross_entropy

ROWS = 24
BATCH = 4
MICRO_BATCHES = 3
RATE = 0.05
CLIPPING = 0.3
STRENGTH = 3e-3
LARGE_STRENGTH = 1.0  # so that the penalty is seen above what bf16 rounds away
STOPPED = 2
SETTINGS = {
    "proximal": PenaltySettings(STRENGTH, mode="proximal"),
    "target": PenaltySettings(1e-3, target_sparsity=0.5),
    "inspected": PenaltySettings(STRENGTH, inspect_steps=3),
    "bf16": PenaltySettings(LARGE_STRENGTH),
}


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
            state_dict_type="SHARDED_STATE_DICT",
            cpu_ram_efficient_loading=True,
        )
        self.is_fsdp_enabled = True


class Stop(TrainerCallback):
    """As if the machine went down after a checkpoint."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == STOPPED:
            raise KeyboardInterrupt


def build(kind: str, dtype: torch.dtype) -> nn.Module:
    """A model with dimensions that two processes can't halve."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 31, "hidden_size": 16, "intermediate_size": 25, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2)).to(dtype)
    model.loss_function = mean_cross_entropy
    if kind == "frozen":
        model.model.embed_tokens.requires_grad_(False)
        model.model.layers[0].mlp.up_proj.requires_grad_(False)
    # Reentrant checkpointing hands gradients on only if the embeddings' output wants one.
    model.enable_input_require_grads()
    if kind in ("full", "frozen"):
        return model
    saved = ["lm_head"] if kind == "saved" else None
    targets = ["q_proj", "o_proj", "up_proj"]
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=targets, modules_to_save=saved)
    return get_peft_model(model, lora, autocast_adapter_dtype=False).to(dtype)


def dtype_of(parallel: str) -> torch.dtype:
    """DeepSpeed keeps its own weights in fp32."""
    return torch.float32 if parallel.startswith("zero") else torch.float64


def deepspeed_config(stage: int) -> dict[str, Any]:
    import deepspeed.comm

    # With gloo, torch 2.13 refuses to gather into the views that DeepSpeed 0.18 hands it.
    deepspeed.comm.has_all_gather_into_tensor = lambda: False
    auto = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size", "gradient_clipping")
    return {
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": "auto"},
        **dict.fromkeys(auto, "auto"),
    }


class Logger(TrainerCallback):
    """Writes down what loggers are given of inspections, as the process that logs."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if state.is_world_process_zero and "paft/inspect/l1_norm" in logs:
            (Path(args.output_dir) / f"figures-{state.global_step}.json").write_text(json.dumps(logs))


class Recorder:
    """Keeps, of each optimizer step, the rows of all processes, the parameters before it, and the gradients that it was given."""

    def __init__(self, trainer: Trainer, injector: PenaltyInjector) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._trainer = trainer
        self._rows: list[Tensor] = []
        self._synchronised: list[bool] = []
        inner_step, inner_penalty = trainer.training_step, injector.before_optimizer_step

        def training_step(model: nn.Module, inputs: dict[str, Tensor], *rest: Any) -> Tensor:
            self._rows.append(inputs["input_ids"])
            return inner_step(model, inputs, *rest)

        def before_optimizer_step() -> None:
            inner_penalty()
            self.take()

        trainer.training_step = training_step
        injector.before_optimizer_step = before_optimizer_step  # type: ignore[method-assign]
        trainer.model.register_forward_pre_hook(lambda *_: self._note_synchronisation())

    def _note_synchronisation(self) -> None:
        self._synchronised.append(getattr(self._trainer.model_wrapped, "require_backward_grad_sync", True))

    def take(self) -> None:
        """Record the step that is due."""
        prefix = f"{self._trainer.state.global_step}"
        mine = torch.stack(self._rows)  # [micro-batches, rows, tokens]
        everyones = [mine]
        if torch.distributed.is_initialized():
            everyones = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather(everyones, mine)
        self.tensors[f"{prefix}/rows"] = torch.cat(everyones, 1).flatten(0, 1)
        self.tensors[f"{prefix}/synchronised"] = torch.tensor(self._synchronised)
        self.tensors |= {f"{prefix}/gradient/{name}": self._gradient(p) for name, p in trained(self._trainer.model)}
        self.tensors |= {f"{prefix}/before/{name}": whole(p.detach()) for name, p in trained(self._trainer.model)}
        self._rows, self._synchronised = [], []

    def _gradient(self, parameter: nn.Parameter) -> Tensor:
        if self._trainer.is_deepspeed_enabled:
            from deepspeed.utils import safe_get_full_grad

            return safe_get_full_grad(parameter)
        return whole(parameter.grad)


def trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone().contiguous()


def make_trainer(case: str, directory: Path) -> tuple[Trainer, Recorder]:
    kind, parallel, *ways = case.split("-")
    way = ways[0] if ways else None
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    AcceleratorState._reset_state()
    arguments: dict[str, Any] = {
        "output_dir": str(directory / case),
        "per_device_train_batch_size": BATCH // processes,
        "gradient_accumulation_steps": MICRO_BATCHES,
        "max_steps": 20 if way == "target" else 4,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": CLIPPING,
        "logging_steps": 1,
        "save_strategy": "steps" if way == "resumed" else "no",
        "save_steps": STOPPED,
        "report_to": [],
        "use_cpu": True,
        "ddp_backend": "gloo" if processes > 1 else None,
        "ddp_find_unused_parameters": False,
        "seed": 3,
        "disable_tqdm": True,
        "gradient_checkpointing": parallel != "fsdp2",
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
        "deepspeed": deepspeed_config(int(parallel[-1])) if parallel.startswith("zero") else None,
        "bf16": way == "bf16",
    }
    dtype = dtype_of(parallel)
    trainer_class = ShardingTrainer if parallel == "fsdp2" else Trainer
    trainer = trainer_class(model=build(kind, dtype), args=TrainingArguments(**arguments), train_dataset=Rows(ROWS))
    injector = PenaltyInjector(trainer, SETTINGS.get(way or "", PenaltySettings(STRENGTH)))
    recorder = Recorder(trainer, injector)
    injector.install()
    trainer.add_callback(Logger())
    return trainer, recorder


def train(case: str, directory: Path) -> None:
    resumed = case.endswith("-resumed")
    if resumed:
        trainer, _ = make_trainer(case, directory)
        trainer.add_callback(Stop())
        try:
            trainer.train()
        except KeyboardInterrupt:
            assert trainer.state.global_step == STOPPED
    trainer, recorder = make_trainer(case, directory)
    trainer.train(resume_from_checkpoint=resumed)
    parameters = trained(trainer.model)
    assert all(isinstance(p, DTensor) for _, p in parameters) == ("-fsdp2" in case)
    last = {f"after/{name}": whole(p.detach()) for name, p in parameters}
    if trainer.args.process_index == 0:
        save_file(recorder.tensors | last, directory / f"{case}.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for each in sys.argv[2:]:
        train(each, Path(sys.argv[1]))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
