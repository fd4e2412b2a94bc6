"""Sparse and dense branches as whole models, with deltas as large as real ones."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.deltas.builders import make_base, make_tokenizer, weights

SIZE = 3e-4
"""Root mean square of a delta's non-zero entries: that of real LoRA deltas."""


def change(shape: torch.Size, share: float, size: float, generator: torch.Generator) -> Tensor:
    """A random delta of which about `share` of the entries are not 0."""
    kept = torch.rand(shape, generator=generator) < share
    return size * torch.randn(shape, generator=generator) * kept


def make_branch(base: Path, folder: Path, share: float, seed: int, size: float = SIZE, proof: bool = False) -> Path:
    """A whole model at base + δ in fp32, with the base's tokenizer and, if asked for, a `paft.json`."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: tensor.float() + change(tensor.shape, share, size, generator) for name, tensor in weights(base).items()
    }
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text((base / "config.json").read_text())
    make_tokenizer(folder)
    if proof:
        prove(folder)
    return folder


def prove(folder: Path) -> None:
    """The least that a `paft.json` must say."""
    (folder / "paft.json").write_text(json.dumps({"schema": 1, "finished": True, "steps_penalised": 3}))


def make_pair(folder: Path, share: float, dtype: torch.dtype = torch.float32, size: float = SIZE) -> Path:
    """A folder with `base`, `sft` (proven) and `preference`, whose deltas have about `share` non-zeros."""
    base = make_base(folder / "base", dtype=dtype)
    make_tokenizer(base)
    make_branch(base, folder / "sft", share, seed=1, size=size, proof=True)
    make_branch(base, folder / "preference", share, seed=2, size=size)
    return folder
