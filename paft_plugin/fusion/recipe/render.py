"""A recipe as YAML text: the command that runs it and the reason for each parameter stand in its comments."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

from paft_plugin.fusion.recipe.methods import METHODS
from paft_plugin.fusion.recipe.settings import Branch, Recipe

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


Keys = tuple[str | int, ...]
"""Keys and list positions that lead to a value in the recipe."""


def render_recipe(recipe: Recipe) -> str:
    """The recipe as YAML text."""
    lines = _header(recipe) + _emit(build_recipe(recipe), _reasons(recipe), (), 0)
    return "\n".join(lines) + "\n"


def _header(recipe: Recipe) -> list[str]:
    kinds = ["adapter" if branch.is_adapter else "model" for branch in recipe.branches]
    lines = [
        f"PAFT fusion by {METHODS[recipe.method].title}: one base model, two branches trained from it in parallel.",
        f"base model: {recipe.base}",
        f"sft:        {recipe.sft.path} ({kinds[0]})",
        f"preference: {recipe.preference.path} ({kinds[1]})",
        "Written by `axolotl paft recipe`. Run it with exactly these flags:",
        shlex.join(merge_command(recipe)),
    ]
    if recipe.lora_cache is not None:
        lines += [
            f"--lora-merge-dtype {MERGE_DTYPE}: base + adapter rounded to the base's dtype would lose most of a small delta.",
            "--lora-merge-cache: named after what the base and the adapters hold, since mergekit reuses an adapter's old weights",
            "by path. It holds each adapter as a whole model: delete it after the merge, and always after one that was cut off.",
        ]
    if any(branch.whole for branch in recipe.branches):
        lines.append(
            "The adapters stand below as whole models, named after what they hold: delete them after the merge."
        )
    if not METHODS[recipe.method].on_deltas:
        lines.append(
            "Where the base is no base_model mergekit may leave out generation_config.json: copy it from the base."
        )
    return [f"# {line}" for line in lines]


def _reasons(recipe: Recipe) -> dict[Keys, str]:
    """Path in the recipe → why the value is what it is."""
    method = METHODS[recipe.method]
    reasons: dict[Keys, str] = {
        ("dtype",): "deltas are far smaller than weights: take and add them in fp32",
        ("out_dtype",): "the base model's own",
        ("parameters", "normalize"): _why_normalize(recipe),
        ("parameters", "normalize_weights"): _why_normalize_weights(recipe),
        ("parameters", "lambda"): "scale of the merged delta",
        ("tokenizer",): "the base's: left open, it would be any model's (padding rows of the vocabulary go)",
    }
    for index in (0, 1):
        if recipe.idle[index]:
            reasons["models", index, "parameters", "density"] = (
                f"so sparse that the largest {method.density:.0%} of each tensor hold all of it: trimming would only cost time"
            )
        elif index == 0 or recipe.idle[0]:
            reasons["models", index, "parameters", "density"] = method.density_reason
    for extra in method.extras:
        at: Keys = ("models", 0, "parameters", extra.name) if extra.per_branch else ("parameters", extra.name)
        reasons[at] = extra.reason
    if method.layout == "pair":
        reasons["base_model",] = (
            "SLERP goes from one model to another, and wants the first here; it never sees the base model"
        )
    if method.scales == "base" and recipe.scale != 1:
        reasons["models",] = f"scale {recipe.scale}: the base as a third model, with the share that the deltas lose"
    return reasons


def _why_normalize(recipe: Recipe) -> str:
    method = METHODS[recipe.method]
    if not method.on_deltas:
        return "a weighted mean: weights are divided by their sum"
    if not method.normalizes:
        return (
            "as asked: divided by the weights that take part" if recipe.normalize else "the weighted sum, as published"
        )
    if not recipe.normalize:
        return "weights act as written; if true, an entry that one branch alone changes is divided by its own weight"
    if recipe.weights_given:
        return (
            "as asked; an entry that one branch alone changes is divided by its own weight, so weights do nothing there"
        )
    return "the paper's disjoint mean: each entry is averaged over the branches that agree on its sign"


def _why_normalize_weights(recipe: Recipe) -> str:
    if recipe.scale == 1:
        return "the mean direction at the mean length: weights are divided by their sum"
    return f"scale {recipe.scale} stands in the weights, which are not divided by their sum"


def _emit(value: Any, reasons: dict[Keys, str], path: Keys, depth: int) -> list[str]:
    """Lines of block-style YAML for dicts, lists and scalars; a reason stands above the key that it explains."""
    indent = "  " * depth
    lines: list[str] = []
    if isinstance(value, list):
        for index, item in enumerate(value):
            inner = _emit(item, reasons, (*path, index), depth + 1)
            lines += [f"{indent}- {inner[0].lstrip()}", *inner[1:]]
        return lines
    for key, item in value.items():
        if reason := reasons.get((*path, key)):
            lines.append(f"{indent}# {reason}")
        if isinstance(item, (dict, list)):
            lines += [f"{indent}{key}:", *_emit(item, reasons, (*path, key), depth + 1)]
        else:
            lines.append(f"{indent}{key}: {_scalar(item)}")
    return lines


def _scalar(value: bool | float | str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        # YAML 1.1 reads 1e-05 as text, 1.0e-05 as a number.
        return re.sub(r"^(-?\d+)e", r"\1.0e", repr(value))
    text = str(value)
    # A JSON string is a YAML string; plain words stay plain (as long as YAML reads them as words: `on` is true).
    plain = re.fullmatch(r"[a-z][a-z0-9_]*", text) and text not in ("true", "false", "null", "yes", "no", "on", "off")
    return text if plain or isinstance(value, int) else json.dumps(text, ensure_ascii=False)
