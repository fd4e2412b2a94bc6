"""`paft.yml`: a base model, its two branches, and under `search:` what to search and how to score it."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from paft_plugin.errors import PaftError, raise_if_any
from paft_plugin.fusion.methods import METHODS
from paft_plugin.search.space import DEFAULTS, range_problems

STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _as_range(value: Any) -> Any:
    """A number is a range without width."""
    return (value, value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _as_mapping(value: Any) -> Any:
    """A list of names is a mapping with nothing said about each; so is a name with nothing behind it."""
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return {name: {} for name in value}
    if isinstance(value, dict):
        return {name: {} if content is None else content for name, content in value.items()}
    return value


Range = Annotated[tuple[float, float], BeforeValidator(_as_range)]


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


class SearchConfig(BaseModel):
    """What is under `search:`."""

    model_config = STRICT

    objectives: Annotated[dict[str, Objective], BeforeValidator(_as_mapping)] = Field(
        min_length=1,
        description="lm-eval task → which number of it counts. One: the best is found; more: the Pareto front.",
    )
    tasks: Path | None = Field(default=None, description="Folder of lm-eval task files. Left out: lm-eval's own tasks.")
    test_tasks: Path | None = Field(
        default=None,
        description="Folder of the task files that will judge the result: an item of theirs is never searched on.",
    )
    methods: Annotated[dict[str, Ranges], BeforeValidator(_as_mapping)] = Field(
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


class PaftConfig(BaseModel):
    """A whole `paft.yml`. Paths in it are meant from the file's own folder, and are absolute here."""

    model_config = STRICT

    base: Path = Field(description="Folder of the base model θ_pre.")
    sft: Path = Field(description="Folder of the SFT branch: an adapter or a model.")
    preference: Path = Field(description="Folder of the preference branch: an adapter or a model.")
    output_dir: Path = Field(description="Where everything goes.")
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
        config = PaftConfig.model_validate(content)
    except ValidationError as error:
        raise PaftError([f"{file}: {_explain(dict(fault))}" for fault in error.errors()]) from None
    config = _absolute(config, file.resolve().parent)
    raise_if_any([f"{file}: {problem}" for problem in _problems(config)])
    return config


class _NoDuplicates(yaml.SafeLoader):
    """YAML in which the same key twice is an error: the first one would be skipped in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [key for key in dict.fromkeys(keys) if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _explain(fault: dict[str, Any]) -> str:
    """One of pydantic's errors in words."""
    # A mapping's own key, or a place in a tuple, comes as a part of its own.
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "missing":
        return f"{where}: missing. {_description(fault['loc'])}".rstrip()
    if fault["type"] != "extra_forbidden":
        return f"{where}: {fault['msg']}. {_description(fault['loc'])}".rstrip()
    known = list(_model_at(fault["loc"][:-1]).model_fields)
    close = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
    return f"{where}: no such key. " + (f"Did you mean {close[0]}?" if close else f"There are {', '.join(known)}.")


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


def _absolute(config: PaftConfig, folder: Path) -> PaftConfig:
    def at(path: Path | None) -> Path | None:
        return None if path is None else (folder / path.expanduser()).resolve()

    search = config.search.model_copy(
        update={"tasks": at(config.search.tasks), "test_tasks": at(config.search.test_tasks)}
    )
    paths = {name: at(getattr(config, name)) for name in ("base", "sft", "preference", "output_dir")}
    return config.model_copy(update={**paths, "search": search})


def _problems(config: PaftConfig) -> list[str]:
    search = config.search
    folders = {
        **{name: getattr(config, name) for name in ("base", "sft", "preference")},
        **{f"search.{name}": getattr(search, name) for name in ("tasks", "test_tasks")},
    }
    problems = [
        f"{key}: {path} is no folder." for key, path in folders.items() if path is not None and not path.is_dir()
    ]
    if config.output_dir.exists() and not config.output_dir.is_dir():
        problems.append(f"output_dir: {config.output_dir} is a file.")
    names = [objective.name or task for task, objective in search.objectives.items()]
    problems += [f"search.objectives: two are called {name}." for name in dict.fromkeys(names) if names.count(name) > 1]
    for name, ranges in search.methods.items():
        if name not in METHODS:
            close = difflib.get_close_matches(name, METHODS, n=1)
            hint = f"Did you mean {close[0]}?" if close else f"There are {', '.join(METHODS)}."
            problems.append(f"search.methods.{name}: no such method. {hint}")
        else:
            given = {key: value for key, value in ranges if value is not None}
            problems += [f"search.methods.{name}.{problem}" for problem in range_problems(name, given)]
    return problems + trials_problems(search.trials, search, "search.trials")


def trials_problems(trials: int, search: SearchConfig, where: str) -> list[str]:
    """A problem if not even each method's default can be tried; `where` names the setting."""
    if trials >= len(search.methods):
        return []
    return [
        f"{where}: {trials} is fewer than the {len(search.methods)} methods, each of which is tried at its defaults first. "
        f"Give at least {len(search.methods)}, or fewer methods."
    ]
