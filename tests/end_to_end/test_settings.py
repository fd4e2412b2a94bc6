"""Settings of axolotl that change what is trained, or what happens between backward and the optimizer: penalised exactly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.architectures import train_kinds
from tests.end_to_end.runs import LORA

pytestmark = pytest.mark.slow

# Each on the architecture that it is named after; a kernel or a tiled MLP patches the model's class, so it has one to itself.
SETTINGS: dict[str, dict[str, Any]] = {
    "llama, 8-bit": {**LORA, "load_in_8bit": True},
    "llama, 4-bit": {**LORA, "adapter": "qlora", "load_in_4bit": True},
    "llama, rsLoRA with patterns": {
        **LORA,
        "peft_use_rslora": True,
        "lora_rank_pattern": {"q_proj": 2},
        "lora_alpha_pattern": {"down_proj": 32},
    },
    "llama, modules to save": {**LORA, "lora_modules_to_save": ["embed_tokens", "lm_head"]},
    "llama, token indices": {**LORA, "peft_trainable_token_indices": [3, 5]},
    "llama, embedding": {**LORA, "lora_target_modules": ["embed_tokens"]},
    "llama, LoRA+": {**LORA, "loraplus_lr_ratio": 4},
    "llama, gradients in sync after each micro-batch": {
        **LORA,
        "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}},
    },
    "llama, schedule-free and evaluated": {
        **LORA,
        "optimizer": "schedule_free_adamw",  # which swaps other weights in to be evaluated
        "val_set_size": 0.34,
        "eval_strategy": "epoch",
        "gradient_accumulation_steps": 2,
    },
    "llama, checkpointing": {"gradient_checkpointing": True},
    "llama, checkpointing with LoRA": {**LORA, "gradient_checkpointing": True},
    "llama, selective checkpointing": {**LORA, "gradient_checkpointing": True, "selective_checkpointing": True},
    "llama, offloaded hidden states": {
        **LORA,
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
        "activation_offloading": "hidden_states",
    },
    "llama, some rows and layers": {"unfrozen_parameters": ["^model.embed_tokens.weight$[:10]", "layers.1.mlp"]},
    "llama, fake quantisation": {"qat": {"weight_dtype": "int4", "group_size": 16}},
    "llama, compiled": {"torch_compile": True, "torch_compile_backend": "aot_eager"},
    "llama, compiled with LoRA": {**LORA, "torch_compile": True, "torch_compile_backend": "aot_eager"},
    "qwen2, kernels": {**LORA, "lora_qkv_kernel": True, "lora_o_kernel": True},
    "qwen3, tiled MLP": {"tiled_mlp": True, "tiled_mlp_num_shards": 2},
}


def test_every_setting_is_penalised_exactly(write_config: Callable[..., Path], base: Path, tmp_path: Path) -> None:
    _, problems = train_kinds(SETTINGS, write_config, base, tmp_path)
    assert problems == {kind: [] for kind in SETTINGS}
