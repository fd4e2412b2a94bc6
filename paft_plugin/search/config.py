"""`paft.yml`: a base model, its two branches, and under `search:` what to search and how to score it."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from paft_plugin.errors import PaftError
from paft_plugin.fusion.methods import METHODS
from paft_plugin.search.space import DEFAULTS, range_problems

STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _as_range(value: Any) -> Any:
    """A number is a range without width."""
    return (value, value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _as_mapping(value: Any) -> Any:
    """A list of names is a mapping with nothing said about each; so is a name with nothing behind it."""
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        _raise([f"{name} is there twice. Name it once." for name in dict.fromkeys(value) if value.count(name) > 1])
        return {name: {} for name in value}
    if isinstance(value, dict):
        return {name: {} if content is None else content for name, content in value.items()}
    return value


def _absolute(path: Path, info: ValidationInfo) -> Path:
    """A path is meant from the file's own folder."""
    return Path((info.context or {}).get("folder", Path()), path.expanduser()).resolve()


def _existing(path: Path) -> Path:
    if not path.is_dir():
        raise ValueError(f"{path} is no folder. Check the path.")
    return path


def _no_file(path: Path) -> Path:
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file. Give a folder.")
    return path


Range = Annotated[tuple[float, float], BeforeValidator(_as_range)]
Folder = Annotated[Path, AfterValidator(_absolute), AfterValidator(_existing)]
OutputFolder = Annotated[Path, AfterValidator(_absolute), AfterValidator(_no_file)]


class Ranges(BaseModel):
    """Where one method's settings are searched: `[lowest, highest]`, or one number to fix it. Left out: the method's own."""

    model_config = STRICT

    density: Range | None = Field(default=None, description="Share of each delta's entries that is kept.")
    weight: Range | None = Field(default=None, description="Weight of each branch; the two are searched apart.")
    scale: Range | None = Field(default=None, description="Factor on the merged delta (TIES' λ).")


class Objective(BaseModel):
    """One lm-eval task that counts, and which of its numbers."""

    model_config = STRICT

    name: str | None = Field(
        default=None, min_length=1, description="What tables and plots call it; the task's name if left out."
    )
    metric: str | None = Field(
        default=None, description="lm-eval's name of the metric; can be left out if the task has just one."
    )
    filter: str | None = Field(
        default=None, description="lm-eval's name of the filter; can be left out if the task has just one."
    )
    direction: Literal["maximize", "minimize"] | None = Field(
        default=None, description="The task's own (higher_is_better) if left out."
    )


def _different_names(objectives: dict[str, Objective]) -> dict[str, Objective]:
    names = [objective.name or task for task, objective in objectives.items()]
    _raise([f"two are called {name}. Name them apart." for name in dict.fromkeys(names) if names.count(name) > 1])
    return objectives


def _known_method(name: str) -> str:
    if name not in METHODS:
        close = difflib.get_close_matches(name, METHODS, n=1)
        raise ValueError(
            "no such method. " + (f"Did you mean {close[0]}?" if close else f"There are {', '.join(METHODS)}.")
        )
    return name


def _fitting_ranges(methods: dict[str, Ranges]) -> dict[str, Ranges]:
    _raise(
        [
            f"{name}.{problem}"
            for name, ranges in methods.items()
            for problem in range_problems(name, {key: value for key, value in ranges if value is not None})
        ]
    )
    return methods


def _raise(problems: list[str]) -> None:
    if problems:
        raise ValueError("\n".join(problems))


MethodName = Annotated[str, AfterValidator(_known_method)]


class SearchConfig(BaseModel):
    """What is under `search:`."""

    model_config = STRICT

    objectives: Annotated[dict[str, Objective], BeforeValidator(_as_mapping), AfterValidator(_different_names)] = Field(
        min_length=1,
        description="lm-eval task → which number of it counts. One: the best is found; more: the Pareto front.",
    )
    tasks: Folder | None = Field(
        default=None, description="Folder of lm-eval task files. Left out: lm-eval's own tasks."
    )
    test_tasks: Folder | None = Field(
        default=None,
        description="Folder of the task files that will judge the result: an item of theirs is never searched on.",
    )
    methods: Annotated[dict[MethodName, Ranges], BeforeValidator(_as_mapping), AfterValidator(_fitting_ranges)] = Field(
        default_factory=lambda: {name: Ranges() for name in DEFAULTS if name in METHODS},
        min_length=1,
        description="The merge methods to consider, as a list or with ranges for each.",
    )
    trials: int = Field(40, ge=1, description="How many in all, over every run of the same search.")
    seed: int = Field(42, ge=0, lt=2**32, description="Of what is proposed, and of methods that drop by chance.")
    timeout: float | None = Field(default=None, gt=0, description="Seconds after which a run begins no further trial.")
    limit: int | None = Field(default=None, ge=1, description="Items of each task at most.")
    batch_size: int = Field(64, ge=1, description="Prompts at once.")
    device: str = Field(
        "auto", description="Where models are merged and scored: cpu, cuda …; auto takes a GPU if there is one."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="In what the merged weights are scored."
    )

    @model_validator(mode="after")
    def enough_trials(self) -> SearchConfig:
        """Each method's defaults are tried first."""
        if self.trials < len(self.methods):
            raise ValueError(f"trials: {too_few(self)}")
        return self


def too_few(search: SearchConfig) -> str:
    """Why not even each method's defaults can be tried."""
    return (
        f"{search.trials} is fewer than the {len(search.methods)} methods, each of which is tried at its defaults first. "
        f"Give at least {len(search.methods)}, or fewer methods."
    )


class PaftConfig(BaseModel):
    """A whole `paft.yml`. Paths in it are meant from the file's own folder, and are absolute here."""

    model_config = STRICT

    base: Folder = Field(description="Folder of the base model θ_pre.")
    sft: Folder = Field(description="Folder of the SFT branch: an adapter or a model.")
    preference: Folder = Field(description="Folder of the preference branch: an adapter or a model.")
    output_dir: OutputFolder = Field(description="Where everything goes.")
    search: SearchConfig


def read_config(file: Path) -> PaftConfig:
    """Read a `paft.yml`.

    Raises:
        PaftError: No such file, no YAML, or all that is wrong in it: unknown keys with a suggestion, values out of range,
            folders that are not there.
    """
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=_NoDuplicates)  # noqa: S506 (a SafeLoader)
    except FileNotFoundError:
        raise PaftError(f"{file}: no such file. `axolotl paft demo` writes an example, or see the README.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PaftError(f"{file}: no valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise PaftError(f"{file}: should hold the keys {', '.join(PaftConfig.model_fields)}.")
    try:
        return PaftConfig.model_validate(content, context={"folder": file.resolve().parent})
    except ValidationError as error:
        problems = [problem for fault in error.errors() for problem in _explain(dict(fault))]
        raise PaftError([f"{file}: {problem}" for problem in problems]) from None


class _NoDuplicates(yaml.SafeLoader):
    """YAML in which the same key twice is an error: the first one would be skipped in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [key for key in dict.fromkeys(keys) if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _explain(fault: dict[str, Any]) -> list[str]:
    """One of pydantic's errors in words; one of ours may be about several things."""
    path = tuple(part for part in fault["loc"] if part != "[key]")
    where = ".".join(str(part) for part in path)
    if fault["type"] == "value_error":
        return [f"{where}: {problem}" for problem in str(fault["ctx"]["error"]).splitlines()]
    if fault["type"] != "extra_forbidden":
        what = "missing" if fault["type"] == "missing" else fault["msg"]
        return [f"{where}: {what}. {_description(path)}".rstrip()]
    known = list(_model_at(path[:-1]).model_fields)
    close = difflib.get_close_matches(str(path[-1]), known, n=1)
    return [f"{where}: no such key. " + (f"Did you mean {close[0]}?" if close else f"There are {', '.join(known)}.")]


def _model_at(path: tuple[int | str, ...]) -> type[BaseModel]:
    """The model whose fields are the keys at a place in the file."""
    inner: dict[str, type[BaseModel]] = {"objectives": Objective, "methods": Ranges}
    if path[:1] != ("search",):
        return PaftConfig
    return inner.get(str(path[1]), SearchConfig) if len(path) > 2 else SearchConfig


def _description(path: tuple[int | str, ...]) -> str:
    for end in range(len(path), 0, -1):
        field = _model_at(path[: end - 1]).model_fields.get(str(path[end - 1]))
        if field is not None:
            return field.description or ""
    return ""
