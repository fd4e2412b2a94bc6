"""What is under `search:` in a `paft.yml`: what to search, and how to score it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from paft_plugin.evaluation.config import MeasuresByTask
from paft_plugin.fusion.recipe.render import RecipeBranch
from paft_plugin.fusion.recipe.settings import MethodName
from paft_plugin.schema import STRICT, Folder, MappingOfNames, known, raise_lines
from paft_plugin.search.space import DEFAULTS, SEARCHED, range_problems


def _as_range(value: Any) -> Any:
    """A number is a range without width."""
    return (value, value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


Range = Annotated[tuple[float, float], BeforeValidator(_as_range)]
Ranges = dict[Annotated[str, AfterValidator(lambda name: known("key", name, list(SEARCHED)))], Range]
"""Where one method's settings are searched: `[lowest, highest]`, or one number to fix it. Left out: the method's own."""


def _fitting_ranges(methods: dict[str, Ranges]) -> dict[str, Ranges]:
    raise_lines([f"{name}.{problem}" for name, ranges in methods.items() for problem in range_problems(name, ranges)])
    return methods


class SearchConfig(BaseModel):
    """What is under `search:`."""

    model_config = STRICT

    branches: Annotated[tuple[str, ...], Field(min_length=2)] | None = Field(
        default=None,
        description="The arms of the branches to fuse, such as [sft, dpo]. Left out: those that the run's own fusions are made "
        "of, penalised where both forms are.",
    )
    objectives: MeasuresByTask = Field(
        default_factory=dict,
        description="Measures of held-out rows (sft_nll, preference …), lm-eval tasks; one: the best is found; more: the Pareto "
        "front. Left out: what each branch is about, and `retained`.",
    )
    tasks: Folder | None = Field(
        default=None, description="Folder of lm-eval task files. Left out: lm-eval's own tasks."
    )
    trust_task_code: bool = Field(
        default=False, description="Whether task files of these folders may run code (!function); read it first."
    )
    test_tasks: Folder | None = Field(
        default=None,
        description="Folder of the task files that will judge the result: an item of theirs is never searched on.",
    )
    methods: Annotated[dict[MethodName, Ranges], MappingOfNames, AfterValidator(_fitting_ranges)] = Field(
        default_factory=lambda: {name: Ranges() for name in DEFAULTS},
        min_length=1,
        description="The merge methods to consider, as a list or with ranges ([lowest, highest], or one number) for each.",
    )
    trials: int = Field(40, ge=1, description="How many in all, over every run of the same search.")
    seed: int = Field(42, ge=0, lt=2**32, description="Of what is proposed, and of methods that drop by chance.")
    merge_seeds: int = Field(
        5,
        ge=1,
        description="Draws that are averaged of methods that drop by chance, of all that is compared in the end.",
    )
    timeout: float | None = Field(default=None, gt=0, description="Seconds after which a run begins no further trial.")
    limit: int | None = Field(default=None, ge=1, description="Items of each task at most.")
    batch_size: int = Field(64, ge=1, description="Prompts at once.")
    device: str | Annotated[list[str], Field(min_length=1)] = Field(
        "auto",
        description="Where models are merged and scored: cpu, cuda …; several (a list, or auto): a trial on each at once.",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="In what the merged weights are scored."
    )

    @property
    def seeds(self) -> range:
        """Of the draws of a method that drops by chance."""
        return range(self.seed, self.seed + self.merge_seeds)

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


@dataclass(frozen=True)
class SearchRequest:
    """A search: what it is about and how it is done. Absolute paths."""

    base: Path
    """Folder of the base model θ_pre."""
    branches: tuple[RecipeBranch, ...]
    """The trained branches: an adapter or a model each."""
    output_dir: Path
    """Gets `search/`."""
    search: SearchConfig
    apply_chat_template: bool = True
    """Whether tasks are asked in it, as the run asks them."""

    @property
    def folder(self) -> Path:
        """Where the search keeps everything."""
        return self.output_dir / "search"
