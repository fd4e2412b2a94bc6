"""A recipe in full, and its text: mergekit's YAML with the command that runs it and the reason for each parameter as comments."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from paft_plugin.files import ADAPTER_CONFIG
from paft_plugin.fusion.recipe.methods import METHODS, TIES_GLOBAL, how_it_trims
from paft_plugin.fusion.recipe.parameters import Parameter
from paft_plugin.fusion.recipe.settings import ROLES, BranchName
from paft_plugin.schema import Keys

# Adapters are applied in this dtype, too: in the base's own, base + s·BA would be rounded before the delta is taken.
MERGE_DTYPE = "float32"
MATERIALIZED = "materialized"
"""Folder beside a recipe for its adapters as whole models, if it has them."""
HEADER = "# mergekit-yaml "
CACHE, DTYPE, RANDOM_SEED = "--lora-merge-cache", "--lora-merge-dtype", "--random-seed"
"""The flags that `axolotl paft recipe` writes into a header, each with a value."""
MOST_SEED = 2**32 - 1
"""numpy's, which mergekit seeds too."""
COUNTS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight"}


@dataclass(frozen=True)
class RecipeBranch(BranchName):
    """A branch in a recipe."""

    path: Path
    """What the user gave: an adapter's or a model's folder."""
    is_adapter: bool = False
    whole: Path | None = None
    """The adapter on its base as a whole model, where it was asked for; mergekit then reads this."""

    @property
    def option(self) -> str:
        """The option of `axolotl paft recipe` that gives it."""
        return f"--{self.name}" if self.name in ROLES else f"--branch {self.name}"


def two_branches(sft: Path, preference: Path) -> tuple[RecipeBranch, RecipeBranch]:
    """An SFT branch and a preference branch, called by their roles."""
    return RecipeBranch("sft", "sft", sft), RecipeBranch("preference", "preference", preference)


@dataclass(frozen=True)
class Recipe:
    """A recipe in full: every choice made, every path absolute. Pure data, so it renders without touching a disk."""

    method: str
    base: Path
    branches: tuple[RecipeBranch, ...]
    parameters: tuple[Parameter, ...]
    out_dtype: str
    """torch's word for the base's dtype (`bfloat16`, `float16`, `float32`, `float64`)."""
    seed: int
    file: Path
    merged: Path
    tokenizer_named: bool
    """Whether mergekit must be told to take the base's tokenizer."""
    trims_globally: bool
    """Whether TIES trims whole deltas rather than each tensor: that is for `axolotl paft merge` alone."""
    lora_cache: Path | None
    """Where mergekit writes each adapter as a whole model; None where it reads no adapter."""
    warnings: tuple[str, ...] = ()
    """What is to be known about the branches: differing tokenizers, a penalty that nothing proves."""


def merge_command(recipe: Recipe) -> list[str]:
    """The command that runs a recipe correctly, as an argument list."""
    if recipe.trims_globally:
        return ["axolotl", "paft", "merge", str(recipe.file), str(recipe.merged), "--seed", str(recipe.seed)]
    command = ["mergekit-yaml", str(recipe.file), str(recipe.merged)]
    if recipe.lora_cache is not None:
        command += [CACHE, str(recipe.lora_cache), DTYPE, MERGE_DTYPE]
    return [*command, RANDOM_SEED, str(recipe.seed)]


@dataclass(frozen=True)
class Header:
    """What is understood of the `mergekit-yaml …` in a recipe's header. Nothing runs it: recipes are downloaded things."""

    paths: tuple[str, ...] = ()
    """Of the recipe and the output."""
    cache: Path | None = None
    """Where mergekit writes adapters as whole models."""
    dtype: str | None = None
    """In what it writes them."""
    seed: int | None = None
    """By which methods draw that drop by chance."""


def read_header(text: str) -> Header | None:
    """The header's command, of a recipe's text; None without one. Flags that are not known mean nothing."""
    line = next((line for line in text.splitlines() if line.startswith(HEADER)), None)
    try:
        words = None if line is None else iter(shlex.split(line.removeprefix(HEADER)))
    except ValueError:  # a quote that is not closed
        return None
    if words is None:
        return None
    paths, values = [], {}
    for word in words:
        flag, _, value = word.partition("=")
        if flag in (CACHE, DTYPE, RANDOM_SEED):
            values[flag] = value or next(words, "")
        elif not word.startswith("-"):
            paths.append(word)
    cache, seed = values.get(CACHE), values.get(RANDOM_SEED, "")
    number = int(seed) if re.fullmatch("[0-9]{1,10}", seed) and int(seed) <= MOST_SEED else None
    return Header(tuple(paths[:2]), Path(cache) if cache else None, values.get(DTYPE), number)


def build_recipe(recipe: Recipe) -> dict[str, Any]:
    """The recipe as mergekit's YAML holds it, in plain dicts and lists."""
    layout = METHODS[recipe.method].layout
    branches = [_of_branch(recipe, branch) for branch in recipe.branches]
    content: dict[str, Any] = {"merge_method": TIES_GLOBAL if recipe.trims_globally else recipe.method}
    if layout != "models":
        content["base_model"] = model_reference(recipe.base) if layout == "deltas" else branches[0]
    content["models"] = [{"model": model, **_parameters_of(recipe, place)} for place, model in enumerate(branches)]
    if base_too := _parameters_of(recipe, len(branches)):
        content["models"].append({"model": model_reference(recipe.base), **base_too})
    content |= _parameters_of(recipe, None)
    content |= {"dtype": MERGE_DTYPE, "out_dtype": recipe.out_dtype}
    if recipe.tokenizer_named:
        content["tokenizer"] = {"source": model_reference(recipe.base)}
    return content


def model_reference(model: Path, adapter: Path | None = None) -> dict[str, Any]:
    """A model, or an adapter on it, as mergekit's YAML names it. In a string, `+` and `@` would be read as separators."""
    reference: dict[str, Any] = {"model": {"path": str(model)}}
    if adapter is not None:
        reference["lora"] = {"path": str(adapter)}
    return reference


def adapter_recipe(base: Path, adapter: Path, out_dtype: str) -> str:
    """The recipe that folds an adapter into its base: in fp32, since base + s·BA would be rounded twice otherwise."""
    content = {
        "merge_method": "linear",
        "models": [{"model": model_reference(base, adapter), "parameters": {"weight": 1.0}}],
        "dtype": MERGE_DTYPE,
        "out_dtype": out_dtype,
    }
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
    return f"# {adapter.name} as a whole model.\n{text}"


def interpolation_recipe(base: Path, branches: tuple[Path, Path], alpha: float, out_dtype: str) -> str:
    """The recipe of θ_pre + (1−α)·δ₁ + α·δ₂, which is (1−α)·θ₁ + α·θ₂: at either end the one model to the last bit."""
    weights = {branch: weight for branch, weight in zip(branches, (1 - alpha, alpha), strict=True) if weight}
    models = [
        {
            "model": model_reference(base, branch) if (branch / ADAPTER_CONFIG).is_file() else model_reference(branch),
            "parameters": {"weight": weight},
        }
        for branch, weight in weights.items()
    ]
    content = {
        "merge_method": "linear",
        "models": models,
        "parameters": {"normalize": False},
        "dtype": MERGE_DTYPE,
        "out_dtype": out_dtype,
    }
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
    return f"# From {branches[0].name} (alpha 0) to {branches[1].name} (alpha 1): alpha {alpha:g}.\n{text}"


def _of_branch(recipe: Recipe, branch: RecipeBranch) -> dict[str, Any]:
    if branch.whole is not None:
        return model_reference(branch.whole)
    return model_reference(recipe.base, branch.path) if branch.is_adapter else model_reference(branch.path)


def _parameters_of(recipe: Recipe, model: int | None) -> dict[str, Any]:
    own = {one.name: one.value for one in recipe.parameters if one.model == model}
    return {"parameters": own} if own else {}


def render_recipe(recipe: Recipe) -> str:
    """The recipe as YAML text."""
    lines = _header(recipe) + _emit(build_recipe(recipe), _reasons(recipe), (), 0)
    return "\n".join(lines) + "\n"


def _header(recipe: Recipe) -> list[str]:
    count = COUNTS.get(len(recipe.branches), str(len(recipe.branches)))
    branches = f"{count} branch{'es' if len(recipe.branches) > 1 else ''}"
    width = max(len("base model:"), *(len(branch.name) + 1 for branch in recipe.branches))
    lines = [
        f"PAFT fusion by {METHODS[recipe.method].title.format(count)}: one base model, {branches} trained from it in parallel.",
        f"{'base model:':<{width}} {recipe.base}",
        *(f"{f'{branch.name}:':<{width}} {branch.path} ({_kind(branch)})" for branch in recipe.branches),
        "Written by `axolotl paft recipe`. Run it with exactly these flags:",
        shlex.join(merge_command(recipe)),
    ]
    if recipe.trims_globally:
        lines.append(how_it_trims(TIES_GLOBAL))
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


def _kind(branch: RecipeBranch) -> str:
    kind = "adapter" if branch.is_adapter else "model"
    return kind if branch.name == branch.role else f"{kind}, {branch.role}"


def _reasons(recipe: Recipe) -> dict[Keys, str]:
    """Path in the recipe → why the value is what it is."""
    reasons: dict[Keys, str] = {
        ("base_model",): METHODS[recipe.method].layout_reason,
        ("dtype",): "deltas are far smaller than weights: take and add them in fp32",
        ("out_dtype",): "the base model's own",
        ("tokenizer",): "the base's: left open, it would be any model's (padding rows of the vocabulary go)",
    }
    for one in recipe.parameters:
        at: Keys = ("parameters", one.name) if one.model is None else ("models", one.model, "parameters", one.name)
        reasons[("models",) if one.model == len(recipe.branches) else at] = one.reason
    return reasons


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
        if isinstance(item, list) and not any(isinstance(one, dict) for one in item):
            lines.append(f"{indent}{key}: [{', '.join(map(_scalar, item))}]")
        elif isinstance(item, (dict, list)):
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
