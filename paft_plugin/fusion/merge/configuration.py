"""A recipe as mergekit reads it, with every path made absolute and every mistake that mergekit would trip over named first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mergekit.common import ModelPath, ModelReference
from mergekit.config import MergeConfiguration
from pydantic import BaseModel, ValidationError

from paft_plugin.errors import PaftError, raise_if_any
from paft_plugin.files import looks_local, resolved
from paft_plugin.reading import parse_yaml, read_text

_DICT_FORM = "Write it as `model: {model: {path: …}, lora: {path: …}}`: there a path may hold any character."


def read_recipe(recipe: Path) -> tuple[MergeConfiguration, str]:
    """A recipe's configuration, with absolute paths, and its text.

    As with `mergekit-yaml`, a relative path is meant from the current folder.

    Raises:
        PaftError: No such file, no valid YAML, not what mergekit understands, or a model that is nowhere.
    """
    text = read_text(recipe, hint="Give a recipe (a mergekit YAML file), or write one with `axolotl paft recipe`.")
    return parse_recipe(text, recipe), text


def parse_recipe(text: str, recipe: Path) -> MergeConfiguration:
    """`read_recipe` of a text; `recipe` names it in messages."""
    content = parse_yaml(text, recipe)
    if not isinstance(content, dict):
        raise PaftError(
            f"{recipe}: not a recipe: a mergekit YAML file starts with keys such as merge_method and models."
        )
    try:
        config = MergeConfiguration.model_validate(content)
    except ValidationError as error:
        faults = [(".".join(map(str, one["loc"])) or "the recipe", one["msg"]) for one in error.errors()]
        raise PaftError([f"{recipe}: {where}: {message}." for where, message in faults]) from None
    except RuntimeError as error:
        # mergekit's own checks; those of a path are about `+` and `@`.
        hint = f" {_DICT_FORM}" if "path" in str(error) or "parse" in str(error) else ""
        raise PaftError(f"{recipe}: {error}.{hint}") from None
    problems: list[str] = []
    config = _each_reference(config, lambda reference: _with_absolute_paths(reference, recipe, problems))
    problems += _confused(config, recipe)
    raise_if_any(list(dict.fromkeys(problems)))
    return config


def references(config: MergeConfiguration) -> list[ModelReference]:
    """Every model that a recipe merges, each once, in the recipe's order (mergekit's own list has the order of a set)."""
    found: dict[ModelReference, None] = {}

    def note(reference: ModelReference) -> ModelReference:
        found[reference] = None
        return reference

    _each_reference(config.model_copy(update={"tokenizer": None, "tokenizer_source": None}), note)
    return list(found)


def _confused(config: MergeConfiguration, recipe: Path) -> list[str]:
    """Different models that mergekit would take for one: it tells its inputs apart by their text, and would lose one."""
    texts = Counter(str(reference) for reference in references(config))
    return [
        f"{recipe}: {text} is named in {count} ways, and mergekit cannot tell them apart. Name it in one way."
        for text, count in texts.items()
        if count > 1
    ]


def without_adapters(config: MergeConfiguration) -> MergeConfiguration:
    """The recipe with each adapter's base in the place of the adapter, for what the two have in common."""
    return _each_reference(config, lambda reference: reference.model_copy(update={"lora": None}))


def _each_reference(config: Any, change: Callable[[ModelReference], ModelReference]) -> Any:
    """A deep copy of (part of) a configuration, in which `change` has replaced every model reference."""
    if isinstance(config, ModelReference):
        return change(config)
    if isinstance(config, BaseModel):
        values = {name: _each_reference(value, change) for name, value in config}
        return config.model_copy(update=values)
    if isinstance(config, dict):
        return {key: _each_reference(value, change) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return type(config)(_each_reference(value, change) for value in config)
    return config


def _with_absolute_paths(reference: ModelReference, recipe: Path, problems: list[str]) -> ModelReference:
    parts = {name: getattr(reference, name) for name in ("model", "lora")}
    return reference.model_copy(
        update={name: _absolute_path(path, recipe, problems) for name, path in parts.items() if path is not None}
    )


def _absolute_path(path: ModelPath, recipe: Path, problems: list[str]) -> ModelPath:
    # `base@x` as a string: mergekit takes what follows `@` for a revision, even of a folder.
    meant = [path.path, f"{path.path}@{path.revision}"] if path.revision else [path.path]
    for candidate in (resolved(Path(text)) for text in meant):
        if candidate.exists():
            return ModelPath(path=str(candidate))
    if (recipe.parent / path.path).exists():
        problems.append(
            f"{recipe}: {path.path}: no such folder from here, but there is one beside the recipe. "
            f"Relative paths are meant from the current folder: run this in {recipe.parent.resolve()}."
        )
    elif looks_local(path.path):
        problems.append(f"{recipe}: {path.path}: no such folder. Check the path.")
    return path
