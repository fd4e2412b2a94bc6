"""Keys of an axolotl config that axolotl would drop without a word."""

from __future__ import annotations

import functools
import operator
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import AliasChoices, BaseModel

from paft_plugin.errors import Findings, closest
from paft_plugin.pipeline.preflight.data_files import file_type

CLOSE = 0.8
"""How alike a key and one that exists must be, 0 to 1, for the key to be a slip of the pen."""


def unknown_keys(schema: type[BaseModel], content: Mapping[str, Any], where: str, said: Sequence[str]) -> Findings:
    """Keys that `schema` does not know, at any depth.

    One that is close to a known key is a mistake; another one may be meant for somebody else, such as a YAML anchor.

    Args:
        schema: axolotl's, with the plugins' keys.
        content: The config as the user wrote it.
        where: For messages.
        said: Problems that are known already: a plugin may have refused its own misspelt keys, and knows better what was meant.
    """
    findings = Findings()
    for path, names in _unknown(schema, content, ""):
        start = f"{where}: {path}: "
        if any(problem.startswith(start) for problem in said):
            continue
        if close := closest(path.rpartition(".")[2], names, CLOSE):
            findings.add([f"{start}axolotl has no such key and would drop it. Did you mean {close}?"])
        else:
            findings.add(
                warnings=[f"{start}axolotl has no such key and drops it. Remove it if it was to do something."]
            )
    return findings


def dropped_keys(datasets: Sequence[Mapping[str, Any]], known: type[BaseModel], strategy: str, where: str) -> list[str]:
    """Keys of data sets that axolotl knows elsewhere, but drops under `rl: strategy`.

    Args:
        datasets: As the user wrote them.
        known: What axolotl turns each into under this strategy.
        strategy: axolotl's `rl`.
        where: For messages.
    """
    problems = []
    for index, entry in enumerate(datasets):
        lost = [key for key, value in entry.items() if key not in known.model_fields and value not in (None, False)]
        guessed = file_type({}, str(entry.get("path") or ""))
        lost = [key for key in lost if not (key == "ds_type" and entry[key] == guessed)]
        problems += [
            f"{where}: datasets[{index}].{key}: axolotl drops this key under rl: {strategy}, whose data sets know "
            f"{', '.join(known.model_fields)} and no more. Remove it, and bring the data into the shape that its type reads."
            for key in lost
        ]
    return problems


def _unknown(kind: Any, value: Any, path: str) -> Iterator[tuple[str, list[str]]]:
    """Path and known neighbours of each unknown key in `value`, which is to be a `kind`."""
    models, items, free = _alternatives(kind)
    if isinstance(value, Mapping) and models and not free:
        names = {name: field for model in models for name, field in _names(model)}
        for key, content in value.items():
            place = f"{path}.{key}" if path else str(key)
            if str(key) not in names:
                yield place, list(names)
            else:
                yield from _unknown(_union(models, str(key)), content, place)
    elif isinstance(value, list) and items:
        for index, content in enumerate(value):
            yield from _unknown(_either(items), content, f"{path}[{index}]")


def _alternatives(kind: Any) -> tuple[list[type[BaseModel]], list[Any], bool]:
    """What a type may be: models, lists of what, and whether a mapping with keys of its own."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind], [], kind.model_config.get("extra") == "allow"
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _alternatives(inner[0])
    if origin in (Union, types.UnionType):
        parts = [_alternatives(each) for each in inner]
        return (
            [m for part in parts for m in part[0]],
            [i for part in parts for i in part[1]],
            any(part[2] for part in parts),
        )
    if origin is list:
        return [], list(inner), False
    return [], [], origin is dict or kind in (dict, Any)


def _names(model: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    for name, field in model.model_fields.items():
        yield name, field
        if field.alias:
            yield field.alias, field
        if isinstance(field.validation_alias, str):
            yield field.validation_alias, field
        elif isinstance(field.validation_alias, AliasChoices):
            yield from ((choice, field) for choice in field.validation_alias.choices if isinstance(choice, str))


def _union(models: list[type[BaseModel]], key: str) -> Any:
    found = [field.annotation for model in models for name, field in _names(model) if name == key]
    return _either(found)


def _either(kinds: list[Any]) -> Any:
    return functools.reduce(operator.or_, kinds)
