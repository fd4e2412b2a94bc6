"""Which tokenizer a merged model gets: always the base's, with its chat template."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from paft_plugin.deltas.adapter import open_adapter
from paft_plugin.deltas.belongs import check_belongs, examine
from paft_plugin.deltas.delta import Delta, delta_of
from paft_plugin.deltas.store import FLOATS, TensorStore, is_adapter, open_model
from paft_plugin.errors import PaftError, raise_if_any, some
from paft_plugin.files import fingerprint, read_json, write_text
from paft_plugin.fusion.recipe.materialize import materialize
from paft_plugin.fusion.recipe.methods import METHODS
from paft_plugin.fusion.recipe.render import MERGE_DTYPE, build_recipe, merge_command, merge_directories, render_recipe
from paft_plugin.fusion.recipe.settings import (
    Recipe,
    RecipeRequest,
    density_open,
    option_problems,
    parse_filters,
    settle,
)

VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model")
FILES = (*VOCABULARY_FILES, "chat_template.jinja")


def needs_tokenizer(request: RecipeRequest) -> bool:
    """Whether a recipe must name the base's tokenizer.

    With a `base_model` mergekit copies the base's files. Without one (linear) it takes the tokenizer of whichever model
    comes first out of a set: harmless for adapters, which stand for their base, but not for models with another tokenizer.
    Naming the source always would cost a base whose vocabulary is padded its padding rows.
    """
    if METHODS[request.method].on_deltas:
        return False
    models = [branch for branch in (request.sft, request.preference) if not is_adapter(branch)]
    return not all(same_tokenizer(model, request.base) for model in models)


def missing_tokenizer(request: RecipeRequest, branch: Path) -> list[str]:
    """A problem if the merge may look for a tokenizer in a model's folder that has none."""
    looks_there = not METHODS[request.method].on_deltas and not is_adapter(branch)
    if not looks_there or any((branch / file).is_file() for file in VOCABULARY_FILES):
        return []
    return [
        f"{branch}: no tokenizer, and {request.method} may take it from any model. Copy the base's tokenizer files there."
    ]


def same_tokenizer(one: Path, other: Path) -> bool:
    """Whether two folders hold the same tokenizer and chat template."""
    return _tokenizer(one) == _tokenizer(other)


def _tokenizer(folder: Path) -> list[Any]:
    """What makes two tokenizers the same: the files' bytes, and the chat template wherever it is kept."""
    contents: list[Any] = [(folder / file).read_bytes() if (folder / file).is_file() else None for file in FILES]
    config = folder / "tokenizer_config.json"
    return [*contents, read_json(config).get("chat_template") if config.is_file() else None]


__all__ = [
    "build_recipe",
    "describe",
    "merge_command",
    "merge_directories",
    "render_recipe",
    "write_recipe",
]


def describe(request: RecipeRequest) -> Recipe:
    """Check a request against what the folders hold, and settle every choice.

    Raises:
        PaftError: Every wrong option, and everything that keeps a branch from belonging to the base.
    """
    request = absolute(request)
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
    findings = examine(request.base, request.sft, request.preference)
    problems += findings.problems + _filters_without_tensors(request, base)
    raise_if_any(list(dict.fromkeys(problems)))
    raise_if_any([problem for branch in branches for problem in missing_tokenizer(request, branch)])
    adapters = [open_adapter(branch).fingerprint for branch in branches if is_adapter(branch)]
    recipe = settle(
        request,
        sft_is_adapter=is_adapter(request.sft),
        preference_is_adapter=is_adapter(request.preference),
        dtype=FLOATS[base.main_dtype],
        tokenizer_named=needs_tokenizer(request),
        cache=fingerprint([base.fingerprint, MERGE_DTYPE, *adapters]) if adapters and not request.materialize else "",
        idle=_idle(request, base),
    )
    return replace(recipe, warnings=tuple(findings.warnings))


def write_recipe(request: RecipeRequest) -> Recipe:
    """Check a request, write its recipe (whole or not at all; with the branches as models, if asked for), and return it.

    Raises:
        PaftError: As `describe`, and as `materialize`.
        OSError: The recipe's folder cannot be written to.
    """
    recipe = describe(request)
    if request.materialize:
        recipe = materialize(recipe)
    write_text(recipe.file, render_recipe(recipe))
    return recipe


def absolute(request: RecipeRequest) -> RecipeRequest:
    """The same request with absolute paths."""
    return replace(
        request,
        base=request.base.resolve(),
        sft=request.sft.resolve(),
        preference=request.preference.resolve(),
        output=request.output.resolve(),
        merged=request.merged.resolve() if request.merged is not None else None,
    )


def trims_nothing(delta: Delta, density: float) -> bool:
    """Whether keeping the largest `density` of each tensor's entries keeps all of its non-zero ones; stops where it doesn't."""
    return all(int(torch.count_nonzero(change)) <= int(density * change.numel()) for _, change in delta.tensors())


def _idle(request: RecipeRequest, base: TensorStore) -> tuple[bool, bool]:
    method = METHODS[request.method]
    # Breadcrumbs at density 1 would not take its outliers away either.
    if method.selects != "largest" or method.density is None or request.extras.get("gamma"):
        return False, False
    sft, preference = (
        density_open(request, name) and trims_nothing(delta_of(base, branch), method.density)
        for name, branch in (("sft", request.sft), ("preference", request.preference))
    )
    return sft, preference


def _filters_without_tensors(request: RecipeRequest, base: TensorStore) -> list[str]:
    names = dict.fromkeys(one.name for one in parse_filters(request.filters)[0])
    modules = dict.fromkeys(part for name in base.names for part in name.split(".")[:-1] if not part.isdigit())
    return [
        f"--filter {name}: no tensor of {request.base} has it in its name. Its modules are {some(list(modules), most=20)}."
        for name in names
        if not any(name in tensor for tensor in base.names)
    ]
