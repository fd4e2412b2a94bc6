"""Reading `paft.yml` strictly: paths meant from its own folder, no key that is ignored, every mistake said at once in words.

`unknown_keys` finds such keys in the files of other tools, too.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationError,
    ValidationInfo,
)

from paft_plugin.errors import PaftError, did_you_mean
from paft_plugin.files import resolved
from paft_plugin.reading import LimitedLoader, UnreadableError, read_yaml_file

STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
Model = TypeVar("Model", bound=BaseModel)
Keys = tuple[str | int, ...]
"""Keys and list positions that lead to a value."""


def raise_lines(problems: Sequence[str]) -> None:
    """For validators: one `ValueError` with a line for each of `problems`, if there are any."""
    if problems:
        raise ValueError("\n".join(problems))


def as_mapping(value: Any) -> Any:
    """A list of names, some with settings, is a mapping; nothing is said about a name with nothing behind it."""
    if isinstance(value, list) and all(isinstance(each, (str, dict)) for each in value):
        pairs = [pair for each in value for pair in (each.items() if isinstance(each, dict) else [(each, None)])]
        names = [name for name, _ in pairs]
        raise_lines([f"{name} is there twice. Name it once." for name in dict.fromkeys(names) if names.count(name) > 1])
        value = dict(pairs)
    if isinstance(value, dict):
        return {name: {} if content is None else content for name, content in value.items()}
    return value


def in_folder(path: Path, info: ValidationInfo) -> Path:
    """A path is meant from the folder of the file that names it."""
    try:
        path = path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path}: {str(error).rstrip('.')}. Check the path.") from None
    return resolved(Path((info.context or {}).get("folder", Path()), path))


def _existing(path: Path) -> Path:
    if not path.is_dir():
        raise ValueError(f"{path} is no folder. Check the path.")
    return path


def given_file(path: Path, info: ValidationInfo) -> Path:
    """The file that is meant by a path in another one; for validators.

    Raises:
        ValueError: There is none.
    """
    path = in_folder(path, info)
    if not path.is_file():
        raise ValueError(f"{path}: no such file. Check the path.")
    return path


def _no_file(path: Path) -> Path:
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file. Give a folder.")
    return path


def known(what: str, name: str, names: Sequence[str]) -> str:
    """`name`, if it is one of `names`, each of which is a `what`.

    Raises:
        ValueError: it is not; suggests the closest one.
    """
    if name not in names:
        raise ValueError(f"no such {what}. {suggestion(name, names)}")
    return name


def suggestion(name: str, names: Sequence[str]) -> str:
    """A sentence with the closest of `names`, or else with all of them."""
    return did_you_mean(name, names, otherwise=f"There are {', '.join(names)}.")


MappingOfNames = BeforeValidator(as_mapping)
Folder = Annotated[Path, AfterValidator(in_folder), AfterValidator(_existing)]
OutputFolder = Annotated[Path, AfterValidator(in_folder), AfterValidator(_no_file)]


def read_yaml(file: Path, hint: str) -> dict[str, Any]:
    """The mapping in a YAML file; a key that is there twice is an error. `hint` says in messages what it should hold.

    Raises:
        PaftError: No such file, no YAML, no mapping.
    """
    content = read_yaml_file(file, hint, _NoDuplicates)
    if not isinstance(content, dict):
        raise UnreadableError(file, "should hold keys and values", hint=hint)
    return content


def validate(model: type[Model], content: dict[str, Any], file: Path) -> Model:
    """`content` of `file` as a `model`.

    Raises:
        PaftError: All that is wrong in it: unknown keys with a suggestion, values out of range, folders that are not there.
    """
    try:
        return model.model_validate(content, context={"folder": file.resolve().parent})
    except ValidationError as error:
        problems = [problem for fault in error.errors() for problem in _explain(model, dict(fault))]
        raise PaftError([f"{file}: {problem}" for problem in problems]) from None


class _NoDuplicates(LimitedLoader):
    """YAML in which the same key twice is an error: the first one would be skipped in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        if twice := [key for key in dict.fromkeys(keys) if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _explain(model: type[BaseModel], fault: dict[str, Any]) -> list[str]:
    """One of pydantic's errors in words; one of ours may be about several things."""
    # What is in brackets is pydantic's: a mapping's key rather than its value, or which of several forms a value has.
    path = tuple(part for part in fault["loc"] if not str(part).startswith("["))
    where = ".".join(str(part) for part in path)
    prefix = f"{where}: " if where else ""
    if fault["type"] == "value_error":
        return [f"{prefix}{problem}" for problem in str(fault["ctx"]["error"]).splitlines()]
    if fault["type"] != "extra_forbidden":
        what = "missing" if fault["type"] == "missing" else fault["msg"]
        return [f"{prefix}{what}. {_description(model, path)}".rstrip()]
    names = [name for holder in _models_at(model, path[:-1]) for name in holder.model_fields]
    return [f"{prefix}no such key. {suggestion(str(path[-1]), list(dict.fromkeys(names)))}"]


@dataclass(frozen=True)
class MayBe:
    """What a value of a type may be; of a union, what a value of any part may be."""

    models: tuple[type[BaseModel], ...] = ()
    items: tuple[Any, ...] = ()
    """Types of a list's items."""
    values: tuple[Any, ...] = ()
    """Types of the values of a mapping that may have any key."""

    @classmethod
    def of(cls, kinds: Iterable[Any]) -> MayBe:
        parts = [cls._of_one(kind) for kind in kinds]
        return cls(
            tuple(model for part in parts for model in part.models),
            tuple(item for part in parts for item in part.items),
            tuple(value for part in parts for value in part.values),
        )

    @classmethod
    def _of_one(cls, kind: Any) -> MayBe:
        origin, inner = get_origin(kind), get_args(kind)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return cls((kind,))
        if origin is Annotated:
            return cls._of_one(inner[0])
        if origin in (Union, types.UnionType):
            return cls.of(inner)
        if origin in (list, tuple):
            return cls(items=inner)
        if origin is dict:
            return cls(values=inner[1:] or (Any,))
        return cls(values=(Any,)) if kind in (dict, Any) else cls()

    def below(self, key: object) -> list[Any]:
        """The types of what may stand under a key, or at a place of a list."""
        fields = [kind for model in self.models for name, kind in _names(model) if name == str(key)]
        if not fields and any(model.model_config.get("extra") == "allow" for model in self.models):
            fields = [kind for model in self.models for kind in _extra(model)]
        return [*fields, *(self.items if isinstance(key, int) else ()), *self.values]


def _extra(model: type[BaseModel]) -> tuple[Any, ...]:
    """The type of what a model takes under any other key."""
    if "__pydantic_extra__" not in model.__dict__.get("__annotations__", {}):
        return (Any,)
    return get_args(get_type_hints(model, include_extras=True)["__pydantic_extra__"])[1:]


def _names(model: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    """Every name under which a model takes a field, with the field's type."""
    for name, field in model.model_fields.items():
        yield name, field.annotation
        aliases = field.validation_alias.choices if isinstance(field.validation_alias, AliasChoices) else []
        for alias in {field.alias, field.validation_alias, *aliases} - {None, name}:
            if isinstance(alias, str):
                yield alias, field.annotation


def places(
    kinds: Sequence[Any], value: Any, keys: Keys = (), owners: tuple[type[BaseModel], ...] = ()
) -> Iterator[tuple[Keys, Any, Sequence[Any], tuple[type[BaseModel], ...]]]:
    """`value`, as YAML or JSON has what a person wrote, and all that is in it.

    Yields where each stands, the value, the types that it may have (none under an unknown key), and the models around it.
    """
    yield keys, value, kinds, owners
    may_be = MayBe.of(kinds)
    if isinstance(value, Mapping) and (may_be.models or may_be.values):
        for key, content in value.items():
            yield from places(may_be.below(str(key)), content, (*keys, str(key)), may_be.models)
    elif isinstance(value, list) and may_be.items:
        for index, content in enumerate(value):
            yield from places(may_be.items, content, (*keys, index))


def unknown_keys(kinds: Sequence[Any], value: Any) -> Iterator[tuple[Keys, tuple[type[BaseModel], ...]]]:
    """Keys that no model knows at their place, at any depth, each with the models that could stand there."""
    return ((keys, owners) for keys, _, may_have, owners in places(kinds, value) if not may_have)


def names_of(models: Iterable[type[BaseModel]]) -> list[str]:
    """Every key that one of the models knows."""
    return list(dict.fromkeys(name for model in models for name, _ in _names(model)))


def dotted(keys: Keys) -> str:
    """`models[0].parameters.weight`."""
    text = ""
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else str(key)
    return text


def _models_at(model: type[BaseModel], path: Keys) -> tuple[type[BaseModel], ...]:
    """The models whose fields are the keys at a place below `model`: several where there may be one of several forms."""
    kinds: list[Any] = [model]
    for key in path:
        kinds = MayBe.of(kinds).below(key)
    return MayBe.of(kinds).models


def _description(model: type[BaseModel], path: Keys) -> str:
    for end in range(len(path), 0, -1):
        for holder in _models_at(model, path[: end - 1]):
            if (field := holder.model_fields.get(str(path[end - 1]))) is not None:
                return field.description or ""
    return ""
