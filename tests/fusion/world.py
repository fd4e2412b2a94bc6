"""A base and its branches of every kind, to write recipes on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from paft_plugin.fusion.recipe.render import two_branches
from paft_plugin.fusion.recipe.settings import RecipeSettings
from paft_plugin.fusion.recipe.write import RecipeRequest
from tests.deltas.builders import make_adapter, make_base, make_model, make_tokenizer


@dataclass
class World:
    """Folders of a base, its adapters (`sft`, `dpo`, `zero`: B = 0) and full models (`sft-full`, `dpo-full`)."""

    folder: Path

    def __getitem__(self, name: str) -> Path:
        return self.folder / name

    def request(
        self,
        output: Path,
        method: str,
        sft: str = "sft",
        preference: str = "dpo",
        materialize: bool = False,
        seed: int = 0,
        **settings: Any,
    ) -> RecipeRequest:
        branches = two_branches(self[sft], self[preference])
        return RecipeRequest(
            self["base"], branches, method, output, RecipeSettings(**settings), seed, materialize=materialize
        )


def make_world(folder: Path, dtype: torch.dtype) -> World:
    base = make_base(folder / "base", dtype=dtype)
    make_tokenizer(base)
    make_adapter(base, folder / "sft", seed=1)
    make_adapter(base, folder / "dpo", seed=2, r=2, use_rslora=True)
    make_adapter(base, folder / "zero", seed=3, size=0.0)
    for name, seed in (("sft-full", 4), ("dpo-full", 5)):
        make_tokenizer(
            make_model(base, folder / name, seed=seed), template="{{ messages[0]['content'] }} of the branch"
        )
    return World(folder)
