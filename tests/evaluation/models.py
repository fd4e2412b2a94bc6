"""A tiny random model that any test can build anew."""

from __future__ import annotations

from pathlib import Path

import torch
from lm_eval.models.huggingface import HFLM
from transformers import LlamaConfig, LlamaForCausalLM

from paft_plugin.demo.pretrain import build_tokenizer
from paft_plugin.evaluation.candidates import Candidate, as_lm_eval, load_model


def build_model(directory: Path, *, seed: int = 0, hidden: int = 32) -> Path:
    """Save a random Llama with large weights (small ones would find all texts equally likely) and the demo's tokenizer."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=64,
            initializer_range=0.4,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def load(
    candidate: Candidate, *, batch_size: int, device: str = "cpu", dtype: str = "float32", chat_template: bool = True
) -> HFLM:
    """A candidate as lm-eval's model."""
    return as_lm_eval(*load_model(candidate, device, dtype, chat_template), batch_size)
