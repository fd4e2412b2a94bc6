"""One tiny random model of each architecture that people train, as transformers saves it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, **TOKENS}
HEAD = {"head_dim": 8}
QWEN_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
VISION = {
    **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"image_size": 28, "patch_size": 14},
}


def gemma3_with_vision() -> PreTrainedModel:
    """Its files say `language_model.model.…` where the loaded model says `model.language_model.…`."""
    text = {**SIZES, **HEADS, **HEAD}
    return Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=VISION, mm_tokens_per_image=4))


def mixtral(experts: int = 4) -> PreTrainedModel:
    return MixtralForCausalLM(MixtralConfig(**SIZES, **HEADS, num_local_experts=experts))


def gpt_oss(**changes: Any) -> PreTrainedModel:
    """Its experts are 3-D in the files, too, with the inputs before the outputs."""
    settings = {**SIZES, **HEADS, **HEAD, "num_local_experts": 4, "num_experts_per_tok": 2, **changes}
    return GptOssForCausalLM(GptOssConfig(**settings))


def qwen3_vl_moe() -> PreTrainedModel:
    text = {**SIZES, **HEADS, **HEAD, **QWEN_EXPERTS, "decoder_sparse_step": 1}
    vision = {"hidden_size": 16, "intermediate_size": 24, "depth": 1, "num_heads": 2, "out_hidden_size": 16}
    return Qwen3VLMoeForConditionalGeneration(
        Qwen3VLMoeConfig(text_config=text, vision_config={**vision, "deepstack_visual_indexes": []})
    )


ARCHITECTURES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, **HEADS)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, **HEADS)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, **HEADS, **HEAD)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, **HEADS, **HEAD)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, **HEADS, **HEAD)),
    "gemma3 with vision": gemma3_with_vision,
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**SIZES, **HEADS)),
    "gpt-neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, num_attention_heads=2)),
    "mixtral": mixtral,
    "qwen2-moe": lambda: Qwen2MoeForCausalLM(
        Qwen2MoeConfig(**SIZES, **HEADS, **QWEN_EXPERTS, shared_expert_intermediate_size=12)
    ),
    "qwen3-moe": lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **HEADS, **HEAD, **QWEN_EXPERTS)),
    "gpt-oss": gpt_oss,
}


def save(model: Callable[[], PreTrainedModel], folder: Path, **how: Any) -> Path:
    """A random model that always comes out the same; `how` goes to transformers' `save_pretrained`."""
    torch.manual_seed(0)
    model().save_pretrained(folder, **how)
    return folder
