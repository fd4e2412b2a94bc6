"""A bench on which healthy recipes are written, spoilt and linted."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from paft_plugin.fusion.lint.findings import Finding
from paft_plugin.fusion.lint.linter import lint_recipe

Recipe = dict[str, Any]


@dataclass
class Bench:
    """Folders to make recipes of, and a folder of the test's own to write them to."""

    sparse: Path
    """`base`, `sft` and `preference`, both with 5 % non-zeros."""
    dense: Path
    """The same with no zeros, on a base of its own."""
    adapters: Path
    """`base` in bf16, and the adapters `sft` and `preference`."""
    own: Path

    def recipe(self, method: str = "task_arithmetic", pair: str = "sparse", **parameters: Any) -> Recipe:
        """A healthy recipe; `parameters` go under each model, and with a leading `shared_` to the recipe."""
        folder: Path = getattr(self, pair)
        base: dict[str, Any] = {"model": {"path": str(folder / "base")}}
        shared = {name.removeprefix("shared_"): value for name, value in parameters.items() if "shared_" in name}
        own = {"weight": 1.0} | {name: value for name, value in parameters.items() if "shared_" not in name}
        models = [
            {"model": base | {"lora": {"path": str(folder / name)}} if pair == "adapters" else str(folder / name)}
            for name in ("sft", "preference")
        ]
        return {
            "merge_method": method,
            "base_model": base,
            "models": [model | {"parameters": copy.deepcopy(own)} for model in models],
            "parameters": shared,
            "dtype": "float32",
            "out_dtype": "bfloat16" if pair == "adapters" else "float32",
        }

    def write(self, recipe: Recipe | str, command: str = "") -> Path:
        """A recipe's file, with a command in its header if asked for."""
        file = self.own / "recipe.yml"
        text = recipe if isinstance(recipe, str) else yaml.safe_dump(recipe, sort_keys=False)
        file.write_text(f"# {command}\n{text}" if command else text)
        return file

    def lint(self, recipe: Recipe | str, command: str = "", read_weights: bool = True) -> list[Finding]:
        """The findings on a recipe."""
        return lint_recipe(self.write(recipe, command), read_weights=read_weights)
