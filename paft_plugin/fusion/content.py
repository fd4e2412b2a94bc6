"""A recipe's content as mergekit reads it, and the command that runs it. Pure: nothing here touches a disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paft_plugin.fusion.methods import METHODS
from paft_plugin.fusion.request import Branch, Recipe

# Adapters are applied in this dtype, too: in the base's own, base + s·BA would be rounded before the delta is taken.
MERGE_DTYPE = "float32"


def build_recipe(recipe: Recipe) -> dict[str, Any]:
    """The recipe as mergekit's YAML holds it, in plain dicts and lists."""
    method = METHODS[recipe.method]
    content: dict[str, Any] = {"merge_method": recipe.method}
    if method.layout == "deltas":
        content["base_model"] = _reference(recipe.base)
    elif method.layout == "pair":
        content["base_model"] = _of_branch(recipe, recipe.sft)
    content["models"] = _models(recipe)
    if parameters := _shared_parameters(recipe):
        content["parameters"] = parameters
    content["dtype"] = MERGE_DTYPE
    content["out_dtype"] = recipe.out_dtype
    if recipe.tokenizer_named:
        content["tokenizer"] = {"source": _reference(recipe.base)}
    return content


def merge_command(recipe: Recipe) -> list[str]:
    """The command that runs a recipe correctly, as an argument list."""
    command = ["mergekit-yaml", str(recipe.file), str(recipe.merged)]
    if recipe.lora_cache is not None:
        command += ["--lora-merge-cache", str(recipe.lora_cache), "--lora-merge-dtype", MERGE_DTYPE]
    return [*command, "--random-seed", str(recipe.seed)]


def merge_directories(recipe: Recipe) -> list[Path]:
    """The folders that a merge writes: the merged model, and the adapters as whole models (to be deleted afterwards)."""
    return [recipe.merged] + ([recipe.lora_cache] if recipe.lora_cache is not None else [])


def _reference(model: Path, adapter: Path | None = None) -> dict[str, Any]:
    # As dicts: in a string, `+` and `@` would be read as separators.
    reference: dict[str, Any] = {"model": {"path": str(model)}}
    if adapter is not None:
        reference["lora"] = {"path": str(adapter)}
    return reference


def _models(recipe: Recipe) -> list[dict[str, Any]]:
    method = METHODS[recipe.method]
    weights: list[Any] | None = None
    if recipe.weights is not None:
        weights = [weight.content() for weight in recipe.weights]
        if recipe.scale != 1 and method.scales in ("base", "weights"):
            total = sum(weight.value for weight in recipe.weights)
            weights = [recipe.scale * weight.value / total for weight in recipe.weights]
    models: list[dict[str, Any]] = []
    for index, branch in enumerate(recipe.branches):
        parameters: dict[str, Any] = {}
        if weights is not None:
            parameters["weight"] = weights[index]
        if recipe.densities is not None:
            parameters["density"] = recipe.densities[index].content()
        parameters |= {extra.name: recipe.extras[extra.name] for extra in method.extras if extra.per_branch}
        models.append({"model": _of_branch(recipe, branch)} | ({"parameters": parameters} if parameters else {}))
    if method.scales == "base" and recipe.scale != 1:
        # Linear has no λ: the base as a third model takes the share that the deltas lose, 1 − S.
        models.append({"model": _reference(recipe.base), "parameters": {"weight": 1 - recipe.scale}})
    return models


def _of_branch(recipe: Recipe, branch: Branch) -> dict[str, Any]:
    if branch.whole is not None:
        return _reference(branch.whole)
    return _reference(recipe.base, branch.path) if branch.is_adapter else _reference(branch.path)


def _shared_parameters(recipe: Recipe) -> dict[str, Any]:
    method = METHODS[recipe.method]
    parameters: dict[str, Any] = {}
    if method.scales == "base":
        parameters["normalize"] = True
    elif method.scales == "weights":
        # Unnormalised weights act as a factor: mergekit multiplies the mean direction by the weighted sum of the norms.
        parameters["normalize_weights"] = recipe.scale == 1
    elif recipe.normalize is not None:
        parameters["normalize"] = recipe.normalize
    parameters |= {extra.name: recipe.extras[extra.name] for extra in method.extras if not extra.per_branch}
    return parameters | ({"lambda": recipe.scale} if method.scales == "lambda" else {})
