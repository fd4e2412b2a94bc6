"""mergekit recipes: from two branches of one base model to a YAML file with its reasons, and the command that runs it."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from paft_plugin.deltas.adapter import open_adapter
from paft_plugin.deltas.belongs import branch_problems, check_belongs, check_finite
from paft_plugin.deltas.fit import quantised
from paft_plugin.deltas.store import FLOATS, is_adapter, open_model
from paft_plugin.errors import PaftError, raise_if_any
from paft_plugin.files import fingerprint, write_text
from paft_plugin.fusion.methods import METHODS
from paft_plugin.fusion.request import Branch, Recipe, RecipeRequest, option_problems, settle
from paft_plugin.fusion.tokenizers import missing_tokenizer, needs_tokenizer

# Adapters are applied in this dtype, too: in the base's own, base + s·BA would be rounded before the delta is taken.
MERGE_DTYPE = "float32"


def describe(request: RecipeRequest) -> Recipe:
    """Check a request against what the folders hold, and settle every choice.

    Raises:
        PaftError: Every wrong option, and everything that keeps a branch from belonging to the base.
    """
    request = _absolute(request)
    problems = option_problems(request)
    if request.output.is_dir():
        problems.append(
            f"--output {request.output}: a folder. Give the recipe's file name, such as {request.output}/ties.yml."
        )
    branches = (request.sft, request.preference)
    try:
        base = open_model(request.base)
    except PaftError:
        # The base's faults come once for each branch; shown once.
        faults = [problem for branch in branches for problem in check_belongs(request.base, branch)]
        raise PaftError(problems + list(dict.fromkeys(faults))) from None
    problems += quantised(base)
    for branch in branches:
        faults = branch_problems(base, branch)
        if not faults and is_adapter(branch):
            faults = check_finite(branch)
        problems += faults
    raise_if_any(list(dict.fromkeys(problems)))
    raise_if_any([problem for branch in branches for problem in missing_tokenizer(request, branch)])
    adapters = [open_adapter(branch).fingerprint for branch in branches if is_adapter(branch)]
    return settle(
        request,
        sft_is_adapter=is_adapter(request.sft),
        preference_is_adapter=is_adapter(request.preference),
        dtype=FLOATS[base.main_dtype],
        tokenizer_named=needs_tokenizer(request),
        cache=fingerprint([base.fingerprint, MERGE_DTYPE, *adapters]) if adapters else "",
    )


def build_recipe(recipe: Recipe) -> dict[str, Any]:
    """The recipe as mergekit's YAML holds it, in plain dicts and lists."""
    content: dict[str, Any] = {"merge_method": recipe.method}
    if METHODS[recipe.method].on_deltas:
        content["base_model"] = _reference(recipe.base)
    content["models"] = _models(recipe)
    content["parameters"] = _shared_parameters(recipe)
    content["dtype"] = MERGE_DTYPE
    content["out_dtype"] = recipe.out_dtype
    if recipe.tokenizer_named:
        content["tokenizer"] = {"source": _reference(recipe.base)}
    return content


def render_recipe(recipe: Recipe) -> str:
    """The recipe as YAML text, with the command that runs it and the reason for each parameter in comments."""
    lines = _header(recipe) + _emit(build_recipe(recipe), _reasons(recipe), (), 0)
    return "\n".join(lines) + "\n"


def write_recipe(request: RecipeRequest) -> Recipe:
    """Check a request, write its recipe (whole or not at all), and return it.

    Raises:
        PaftError: As `describe`.
        OSError: The recipe's folder cannot be written to.
    """
    recipe = describe(request)
    write_text(recipe.file, render_recipe(recipe))
    return recipe


def merge_command(recipe: Recipe) -> list[str]:
    """The command that runs a recipe correctly, as an argument list."""
    command = ["mergekit-yaml", str(recipe.file), str(recipe.merged)]
    if recipe.lora_cache is not None:
        command += ["--lora-merge-cache", str(recipe.lora_cache), "--lora-merge-dtype", MERGE_DTYPE]
    return [*command, "--random-seed", str(recipe.seed)]


def merge_directories(recipe: Recipe) -> list[Path]:
    """The folders that a merge writes: the merged model, and the adapters as whole models (to be deleted afterwards)."""
    return [recipe.merged] + ([recipe.lora_cache] if recipe.lora_cache is not None else [])


def _absolute(request: RecipeRequest) -> RecipeRequest:
    return replace(
        request,
        base=request.base.resolve(),
        sft=request.sft.resolve(),
        preference=request.preference.resolve(),
        output=request.output.resolve(),
        merged=request.merged.resolve() if request.merged is not None else None,
    )


def _reference(model: Path, adapter: Path | None = None) -> dict[str, Any]:
    # As dicts: in a string, `+` and `@` would be read as separators.
    reference: dict[str, Any] = {"model": {"path": str(model)}}
    if adapter is not None:
        reference["lora"] = {"path": str(adapter)}
    return reference


def _models(recipe: Recipe) -> list[dict[str, Any]]:
    weights = list(recipe.weights)
    if not METHODS[recipe.method].on_deltas and recipe.scale != 1:
        # Linear has no λ: the base as a third model takes the share that the deltas lose, 1 − S.
        weights = [recipe.scale * weight / sum(recipe.weights) for weight in weights]
    models = []
    for branch, weight in zip(recipe.branches, weights, strict=True):
        parameters = {"weight": weight}
        if recipe.density is not None:
            parameters["density"] = recipe.density
        models.append({"model": _of_branch(recipe, branch), "parameters": parameters})
    if not METHODS[recipe.method].on_deltas and recipe.scale != 1:
        models.append({"model": _reference(recipe.base), "parameters": {"weight": 1 - recipe.scale}})
    return models


def _of_branch(recipe: Recipe, branch: Branch) -> dict[str, Any]:
    return _reference(recipe.base, branch.path) if branch.is_adapter else _reference(branch.path)


def _shared_parameters(recipe: Recipe) -> dict[str, Any]:
    method = METHODS[recipe.method]
    if not method.on_deltas:
        return {"normalize": True}
    parameters: dict[str, Any] = {"normalize": recipe.normalize}
    if method.drops_at_random:
        parameters["rescale"] = True
    return {**parameters, "lambda": recipe.scale}


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
    if not METHODS[recipe.method].on_deltas:
        lines.append("Without a base_model mergekit may leave out generation_config.json: copy it from the base model.")
    return [f"# {line}" for line in lines]


def _reasons(recipe: Recipe) -> dict[tuple[str, ...], str]:
    """Path of keys in the recipe → why the value is what it is."""
    method = METHODS[recipe.method]
    reasons = {
        ("dtype",): "deltas are far smaller than weights: take and add them in fp32",
        ("out_dtype",): "the base model's own",
        ("parameters", "normalize"): _why_normalize(recipe),
        ("parameters", "rescale"): "what is left of each tensor is scaled up to its L1 norm before (mergekit's DARE)",
        ("parameters", "lambda"): "scale of the merged delta",
        ("models", "parameters", "density"): method.density_reason,
        ("tokenizer",): "the base's: left open, it would be any model's (padding rows of the vocabulary go)",
    }
    if not method.on_deltas and recipe.scale != 1:
        reasons[("models",)] = f"scale {recipe.scale}: the base as a third model, with the share that the deltas lose"
    return reasons


def _why_normalize(recipe: Recipe) -> str:
    if not METHODS[recipe.method].on_deltas:
        return "a weighted mean: weights are divided by their sum"
    if recipe.method != "ties":
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


def _emit(value: Any, reasons: dict[tuple[str, ...], str], path: tuple[str, ...], depth: int) -> list[str]:
    """Lines of block-style YAML for dicts, lists and scalars; a reason stands above the first key that it explains."""
    indent = "  " * depth
    lines: list[str] = []
    if isinstance(value, list):
        for item in value:
            inner = _emit(item, reasons, path, depth + 1)
            lines += [f"{indent}- {inner[0].lstrip()}", *inner[1:]]
        return lines
    for key, item in value.items():
        if reason := reasons.pop((*path, key), None):
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
    # A JSON string is a YAML string; plain words stay plain.
    return text if re.fullmatch(r"[a-z][a-z0-9_]*", text) else json.dumps(text, ensure_ascii=False)
