"""Every way to train that is penalised: a fresh model for each, whose δ is still zero."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftModel, prepare_model_for_kbit_training
from torch import nn
from transformers import BitsAndBytesConfig, LlamaForCausalLM

from tests.penalty.models import tiny_gpt2, tiny_llama, tiny_mixtral, with_lora

EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]


class Attention(nn.Module):
    """torch's own attention, whose query, key and value share one weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(8, 2)


def quantised(folder: Path, config: BitsAndBytesConfig) -> PeftModel:
    """QLoRA as axolotl sets it up; bitsandbytes' CPU kernels want widths of at least 64."""
    tiny_llama(hidden_size=64, intermediate_size=128).save_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(
        folder, quantization_config=config, device_map={"": "cpu"}, dtype=torch.float32
    )
    prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return with_lora(model, modules_to_save=["lm_head"])


TRAINED: dict[str, Callable[[Path], nn.Module]] = {
    "full": lambda _: tiny_llama(),
    "full, tied": lambda _: tiny_llama(tie=True),
    "full in bf16": lambda _: tiny_llama().bfloat16(),
    "linear": lambda _: with_lora(tiny_llama()),
    "rslora": lambda _: with_lora(tiny_llama(), use_rslora=True),
    "patterns": lambda _: with_lora(tiny_llama(), rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 5}),
    "rslora with patterns": lambda _: with_lora(tiny_llama(), use_rslora=True, rank_pattern={"q_proj": 3}),
    "embedding": lambda _: with_lora(tiny_llama(), target_modules=["embed_tokens", "q_proj"]),
    "fan_in_fan_out": lambda _: with_lora(tiny_gpt2(), target_modules=["c_attn"], fan_in_fan_out=True),
    "bf16": lambda _: with_lora(tiny_llama().bfloat16()).bfloat16(),
    "bf16 base, fp32 adapter": lambda _: with_lora(tiny_llama().bfloat16()),
    "replicated layers": lambda _: with_lora(tiny_llama(), layer_replication=[(0, 2), (1, 2)]),
    "torch attention": lambda _: with_lora(Attention(), target_modules=["attention"]),
    "experts": lambda _: with_lora(tiny_mixtral(3), target_modules=["q_proj"], target_parameters=EXPERTS),
    "experts in bf16": lambda _: with_lora(
        tiny_mixtral(3).bfloat16(), target_modules=[], target_parameters=EXPERTS
    ).bfloat16(),
    "experts, rslora": lambda _: with_lora(
        tiny_mixtral(2), target_modules=[], target_parameters=EXPERTS, use_rslora=True
    ),
    "one expert": lambda _: with_lora(tiny_mixtral(1), target_modules=[], target_parameters=EXPERTS),
    "2-D parameter": lambda _: with_lora(
        tiny_llama(), target_modules=[], target_parameters=["q_proj.weight", "v_proj.weight"]
    ),
    "modules to save": lambda _: with_lora(tiny_llama(), modules_to_save=["lm_head", "embed_tokens"]),
    "module to save around a target": lambda _: with_lora(tiny_llama(), modules_to_save=["mlp"]),
    "trainable tokens": lambda _: with_lora(
        tiny_llama(), trainable_token_indices={"embed_tokens": [1, 7], "lm_head": [3]}
    ),
    "trainable tokens, tied": lambda _: with_lora(tiny_llama(tie=True), trainable_token_indices=[1, 7]),
    "biases": lambda _: with_lora(tiny_llama(attention_bias=True), bias="all"),
    "4 bits": lambda folder: quantised(
        folder, BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    ),
    "8 bits": lambda folder: quantised(folder, BitsAndBytesConfig(load_in_8bit=True)),
}
