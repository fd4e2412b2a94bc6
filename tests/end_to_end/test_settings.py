"""Settings of axolotl that change what is trained, or what happens between backward and the optimizer: penalised exactly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .architectures import save_base
from .conftest import LORA
from .replay import why_not_penalised
from .sweeps import WITNESSED, train_all

pytestmark = pytest.mark.slow
STRENGTH = 1e-3
STEPS = 2

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
    architectures = {name: name.partition(",")[0] for name in SETTINGS}
    bases = {one: save_base(one, tmp_path / "bases" / one) for one in sorted({*architectures.values()})}
    runs = {name: {"base_model": str(bases[architectures[name]]), **SETTINGS[name]} for name in SETTINGS}

    # One tokenizer for all, so that the rows are tokenised once.
    common = {"tokenizer_config": str(base), "num_epochs": STEPS, "paft_l1_lambda": STRENGTH, **WITNESSED}
    outputs = train_all(write_config(tmp_path, "settings", **common), runs)
    problems = {
        name: why_not_penalised(bases[architectures[name]], outputs[name], STRENGTH, STEPS) for name in SETTINGS
    }
    assert problems == {name: [] for name in SETTINGS}
