"""Whole models as branches, and what they add up to, without anything of ours or of mergekit's."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.deltas.builders import VOCABULARY
from tests.fusion.merge.tools import load_all

SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
"""Sizes of a small model, by the names that most architectures have for them."""


def with_tensors(base: Path, folder: Path, tensors: dict[str, Tensor]) -> Path:
    """The model in `base` with other tensors."""
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("model*"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def branch(base: Path, folder: Path, seed: int) -> Path:
    """A whole model with another value in every place that holds a float."""
    generator = torch.Generator().manual_seed(seed)
    changed = {}
    for name, tensor in load_all(base).items():
        noise = 0.01 * torch.randn(tensor.shape, generator=generator)
        changed[name] = tensor + noise.to(tensor.dtype) if tensor.is_floating_point() else tensor
    return with_tensors(base, folder, changed)


def summed(base: Path, branches: list[Path], weight: float) -> dict[str, Tensor]:
    """θ + weight · Σ δ, tensor by tensor."""
    tensors = load_all(base)
    holding = [load_all(folder) for folder in branches]
    return {
        name: tensor + sum(weight * (held[name] - tensor) for held in holding) if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }


def loaded(folder: Path, reader: Any = AutoModelForCausalLM) -> tuple[dict[str, Tensor], set[str]]:
    """A model's state as transformers loads it, and what it did not find in the files."""
    model, information = reader.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    return model.state_dict(), set(information["missing_keys"])
