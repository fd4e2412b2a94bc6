"""Reading `paft.yml` strictly: paths meant from its own folder, no key that is ignored, every mistake said at once in words."""

from __future__ import annotations

import types
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError, ValidationInfo

from paft_plugin.errors import PaftError, did_you_mean, one_line

STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
Model = TypeVar("Model", bound=BaseModel)


def raise_lines(problems: Sequence[str]) -> None:
    """For validators: one `ValueError` with a line for each of `problems`, if there are any."""
    if problems:
        raise ValueError("\n".join(problems))


def as_mapping(value: Any) -> Any:
    """A list of names is a mapping with nothing said about each; so is a name with nothing behind it."""
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        raise_lines([f"{name} is there twice. Name it once." for name in dict.fromkeys(value) if value.count(name) > 1])
        return {name: {} for name in value}
    if isinstance(value, dict):
        return {name: {} if content is None else content for name, content in value.items()}
    return value


def in_folder(path: Path, info: ValidationInfo) -> Path:
    """A path is meant from the folder of the file that names it."""
    return Path((info.context or {}).get("folder", Path()), path.expanduser()).resolve()


def _existing(path: Path) -> Path:
    if not path.is_dir():
        raise ValueError(f"{path} is no folder. Check the path.")
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
    """The mapping in a YAML file; a key that is there twice is an error.

    Args:
        file: The file.
        hint: What the file should hold, or where to get one; part of the messages.

    Raises:
        PaftError: No such file, no YAML, no mapping.
    """
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=_NoDuplicates)  # noqa: S506 (a SafeLoader)
    except FileNotFoundError:
        raise PaftError(f"{file}: no such file. {hint}") from None
    except OSError as error:
        raise PaftError(f"{file}: cannot be read ({error.strerror}). {hint}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PaftError(f"{file}: no valid YAML: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise PaftError(f"{file}: should hold keys and values. {hint}")
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


class _NoDuplicates(yaml.SafeLoader):
    """YAML in which the same key twice is an error: the first one would be skipped in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        if twice := [key for key in dict.fromkeys(keys) if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _explain(model: type[BaseModel], fault: dict[str, Any]) -> list[str]:
    """One of pydantic's errors in words; one of ours may be about several things."""
    path = tuple(part for part in fault["loc"] if part != "[key]")
    where = ".".join(str(part) for part in path)
    prefix = f"{where}: " if where else ""
    if fault["type"] == "value_error":
        return [f"{prefix}{problem}" for problem in str(fault["ctx"]["error"]).splitlines()]
    if fault["type"] != "extra_forbidden":
        what = "missing" if fault["type"] == "missing" else fault["msg"]
        return [f"{prefix}{what}. {_description(model, path)}".rstrip()]
    holder = _model_at(model, path[:-1])
    assert holder is not None
    return [f"{prefix}no such key. {suggestion(str(path[-1]), list(holder.model_fields))}"]


def _model_at(kind: Any, path: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The model whose fields are the keys at a place below a type; None where there is none."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        if not path:
            return kind
        field = kind.model_fields.get(str(path[0]))
        return None if field is None else _model_at(field.annotation, path[1:])
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType, Annotated):
        return next((found for each in inner if (found := _model_at(each, path)) is not None), None)
    if inner and path:
        return _model_at(inner[-1], path[1:])
    return None


def _description(model: type[BaseModel], path: tuple[int | str, ...]) -> str:
    for end in range(len(path), 0, -1):
        holder = _model_at(model, path[: end - 1])
        field = holder.model_fields.get(str(path[end - 1])) if holder else None
        if field is not None:
            return field.description or ""
    return ""
