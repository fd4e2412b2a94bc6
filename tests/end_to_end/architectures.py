"""Tiny random models of many architectures, with the demo's tokenizer, and runs on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from paft_plugin.demo.pretrain import build_tokenizer
from tests.end_to_end.replay import why_not_penalised
from tests.end_to_end.sweeps import STRENGTH, WITNESSED, train_all

STEPS = 2
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**SIZES, "num_key_value_heads": 1}
HEADS = {**GROUPED, "head_dim": 16}
ROUTED = {**HEADS, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

ARCHITECTURES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**GROUPED),
    "mistral": MistralConfig(**GROUPED, sliding_window=16),
    "qwen2": Qwen2Config(**GROUPED),
    "qwen3": Qwen3Config(**HEADS),
    "gemma2": Gemma2Config(**HEADS),
    "gemma3": Gemma3TextConfig(**HEADS),
    "phi3": Phi3Config(**GROUPED),
    "gpt_neox": GPTNeoXConfig(**SIZES),
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2),
    "mixtral": MixtralConfig(**HEADS, num_local_experts=4, num_experts_per_tok=2),
    "qwen2_moe": Qwen2MoeConfig(**ROUTED, shared_expert_intermediate_size=24),
    "qwen3_moe": Qwen3MoeConfig(**ROUTED),
}
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe")
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
# axolotl takes its Conv1D layers for no linear ones.
CONV1D = {"lora_target_linear": False, "lora_target_modules": ["c_attn", "c_fc", "c_proj"], "lora_fan_in_fan_out": True}


def save_base(architecture: str, folder: Path) -> Path:
    """A random base model in `folder`, which is returned."""
    tokenizer = build_tokenizer()
    config = ARCHITECTURES[architecture]
    config.vocab_size = len(tokenizer)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def train_kinds(
    kinds: dict[str, dict[str, Any]], write_config: Callable[..., Path], tokenizer: Path, directory: Path
) -> tuple[dict[str, Path], dict[str, list[str]]]:
    """Train two steps with each set of settings; returns the output directories, and why each run was not penalised exactly.

    Args:
        kinds: the settings of each run by its name, which begins with that of an architecture and a comma.
        tokenizer: one for all, so that the rows are tokenised once.
        directory: for everything that is written.
    """
    architectures = {kind: kind.partition(",")[0] for kind in kinds}
    bases = {name: save_base(name, directory / "bases" / name) for name in sorted({*architectures.values()})}
    config = write_config(directory, "all", tokenizer_config=str(tokenizer), num_epochs=STEPS, **WITNESSED)
    runs = {kind: {"base_model": str(bases[architectures[kind]]), **kinds[kind]} for kind in kinds}
    outputs = train_all(config, runs)
    problems = {kind: why_not_penalised(bases[architectures[kind]], outputs[kind], STRENGTH, STEPS) for kind in kinds}
    return outputs, problems
