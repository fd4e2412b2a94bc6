"""The ready recipes of `mergekit_recipes/`: `python -m paft_plugin.fusion.recipe.examples` writes them anew.

They show what `axolotl paft recipe` writes for Mistral-7B-v0.1, the paper's base, with paths to put one's own in place of.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from paft_plugin.files import write_text
from paft_plugin.fusion.recipe.methods import METHODS
from paft_plugin.fusion.recipe.render import render_recipe, two_branches
from paft_plugin.fusion.recipe.settings import RecipeSettings
from paft_plugin.fusion.recipe.write import RecipeRequest, settle

FOLDER = Path(__file__).parents[3] / "mergekit_recipes"
ADAPTERS = RecipeRequest(
    base=Path("/models/Mistral-7B-v0.1"),
    branches=two_branches(Path("/runs/sft-l1"), Path("/runs/dpo")),
    method="ties",
    output=Path("/runs/recipe.yml"),
)
# In a recipe of one's own, the fingerprint of what base and adapters hold.
CACHE = "0123456789abcdef"


def examples() -> dict[str, str]:
    """File name → recipe: each method on two adapters, then TIES weighted, by filter and on two full models."""
    requests = {f"paft-{name}": replace(ADAPTERS, method=name) for name in METHODS}
    requests["paft-ties-weighted"] = _with(weight_sft=0.6, weight_preference=1.0)
    requests["paft-ties-filtered"] = _with(filter=["mlp:density-sft=0.1", "embed:density=0.05"])
    requests["paft-linear-scaled"] = replace(_with(scale=0.7), method="linear")
    full = replace(ADAPTERS, branches=two_branches(Path("/runs/sft-l1-full"), Path("/runs/dpo-full")))
    requests["paft-ties-full"] = full
    return {f"{name}.yml": _render(name, request, adapters=request is not full) for name, request in requests.items()}


def main() -> None:
    """Write every example to `mergekit_recipes/`."""
    for name, text in examples().items():
        write_text(FOLDER / name, text)


def _with(**settings: Any) -> RecipeRequest:
    return replace(ADAPTERS, settings=RecipeSettings(**settings))


def _render(name: str, request: RecipeRequest, adapters: bool) -> str:
    request = replace(request, output=request.output.with_name(f"{name}.yml"))
    branches = tuple(replace(branch, is_adapter=adapters) for branch in request.branches)
    recipe = settle(replace(request, branches=branches), dtype="bfloat16", cache=CACHE)
    return render_recipe(recipe)


if __name__ == "__main__":
    main()
