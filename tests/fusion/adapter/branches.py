"""Recipes written as a user would, the models that they fuse, and what PEFT makes of fused adapters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from paft_plugin.fusion.adapter import FusedAdapter
from paft_plugin.fusion.merge import open_fusion
from tests.deltas.builders import merged_by_peft

Tensors = dict[str, Tensor]


@dataclass
class Branches:
    """A base and two adapters of different rank and scale; `sft` also adapts what `dpo` leaves alone."""

    folder: Path

    def __getitem__(self, name: str) -> Path:
        return self.folder / name

    def recipe(self, file: Path, method: str, *inputs: dict[str, Any], base: bool = True, **content: Any) -> Path:
        """A recipe with `inputs` as parameters of `sft` and `dpo`; a `branch` among them names another folder."""
        models = []
        for name, given in zip(("sft", "dpo"), inputs or ({}, {}), strict=False):
            parameters = dict(given)
            folder = self[parameters.pop("branch", name)]
            is_adapter = (folder / "adapter_config.json").is_file()
            path = {"model": {"path": str(self["base"])}, "lora": {"path": str(folder)}} if is_adapter else str(folder)
            models.append({"model": path, "parameters": parameters})
        named = {"base_model": str(self["base"])} if base else {}
        file.write_text(yaml.safe_dump({"merge_method": method, **named, "models": models, **content}))
        return file


Write = Callable[..., tuple[Path, FusedAdapter]]


def fused_model(recipe: Path) -> Tensors:
    """The merged model of a recipe, in fp32, by the engine that the model's own command uses."""
    return dict(open_fusion(recipe, device="cpu").tensors())


def through_peft(branches: Branches, adapter: Path) -> Tensors:
    """Base + fused adapter as PEFT loads and merges it."""
    return merged_by_peft(branches["base"], adapter)


def assert_same(merged: Tensors, expected: Tensors, within: float = 1e-6) -> None:
    """Every tensor of `expected` is in `merged`, with entries that differ by `within` at most."""
    for name, tensor in expected.items():
        torch.testing.assert_close(
            merged[name], tensor, atol=within, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )
