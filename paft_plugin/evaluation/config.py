"""`evaluation:` in `paft.yml`: what every arm is scored on, and how. A search's `objectives` are spelled the same."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    PositiveFloat,
    ValidationInfo,
    field_validator,
    model_validator,
)

from paft_plugin.evaluation.held_out_rows import KL, RETAINED
from paft_plugin.reading import read_json_file
from paft_plugin.schema import STRICT, Folder, MappingOfNames, given_file, known, raise_lines, validate

OF_ONE_ANSWER, OF_PAIRS, OF_ALL = ("nll", "match"), ("gained", "by_total", "by_token"), (KL, RETAINED)
"""What is measured on held-out rows: `<branch>_<one of these>`, `<branch>` itself (the gain of the margin), and of all."""


def held_out_measures(branches: Collection[str]) -> list[str]:
    """What the measures of held-out rows of these branches may be called, whatever the branches teach."""
    of_one = [f"{name}_{what}" for name in branches for what in (*OF_ONE_ANSWER, *OF_PAIRS)]
    return [*branches, *of_one, *OF_ALL]


class MeasureConfig(BaseModel):
    """Which number of a task counts. Whatever is left out is settled by the task itself."""

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
    num_fewshot: int | None = Field(
        default=None, ge=0, description="Solved examples before each question; the task's own number if left out."
    )


def measure_names(measures: dict[str, MeasureConfig]) -> list[str]:
    """What the measures are called, in order."""
    return [measure.name or task for task, measure in measures.items()]


def _different_names(measures: dict[str, MeasureConfig]) -> dict[str, MeasureConfig]:
    names = measure_names(measures)
    raise_lines([f"two are called {name}. Name them apart." for name in dict.fromkeys(names) if names.count(name) > 1])
    return measures


PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "open-llm-leaderboard-v1": {
        "arc_challenge": {"metric": "acc_norm", "num_fewshot": 25},
        "hellaswag": {"metric": "acc_norm", "num_fewshot": 10},
        "mmlu": {"metric": "acc", "num_fewshot": 5},
        "truthfulqa_mc2": {"metric": "acc", "num_fewshot": 0},
        "winogrande": {"metric": "acc", "num_fewshot": 5},
        "gsm8k": {"metric": "exact_match", "filter": "strict-match", "num_fewshot": 5},
    },
    "open-llm-leaderboard-v2": {
        "leaderboard_ifeval": {"metric": "prompt_level_strict_acc"},
        "leaderboard_bbh": {"metric": "acc_norm"},
        "leaderboard_math_hard": {"metric": "exact_match"},
        "leaderboard_gpqa": {"metric": "acc_norm"},
        "leaderboard_musr": {"metric": "acc_norm"},
        "leaderboard_mmlu_pro": {"metric": "acc"},
    },
    "ifeval": {"ifeval": {"metric": "prompt_level_strict_acc"}},
}
"""What stands among the measures for several of lm-eval's own tasks, each as published: the first are those of the paper."""


def _with_presets(value: Any) -> Any:
    """A preset's name is replaced by its tasks; what is said of one of them beside it counts."""
    if not isinstance(value, dict):
        return value
    found: dict[Any, Any] = {}
    for name, settings in value.items():
        if name not in PRESETS or (name in PRESETS[name] and settings):
            found[name] = settings
        elif settings:
            raise ValueError(
                f"{name}: stands for {', '.join(PRESETS[name])}, and takes no settings. Name those instead."
            )
        else:
            found |= {task: own for task, own in PRESETS[name].items() if task not in value or task == name}
    return found


MeasuresByTask = Annotated[
    dict[str, MeasureConfig], BeforeValidator(_with_presets), MappingOfNames, AfterValidator(_different_names)
]
"""lm-eval task or group, or a preset → which number of it counts."""


def _held_out(value: Any) -> Any:
    """Said here in words: pydantic speaks of every part of a union."""
    if value is None or value is False:
        return {} if value is None else False
    if not isinstance(value, dict):
        raise ValueError("give a number or a share for each branch, such as {sft: 200, preference: 0.1}, or false.")
    raise_lines([f"{name}: {_AMOUNT}, not {rows}." for name, rows in value.items() if not _is_amount(rows)])
    return value


_AMOUNT = "a number of rows, 0 for none, or a share below 1"


def _is_amount(rows: Any) -> bool:
    return (type(rows) is int and rows >= 0) or (isinstance(rows, float) and 0 < rows < 1)


def _retained(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, str):
        return given_file(Path(value), info)
    if (
        value is None
        or isinstance(value, Path)
        or (isinstance(value, list) and all(isinstance(name, str) for name in value))
    ):
        return value or None
    raise ValueError("give a file of rows, or a list of lm-eval tasks.")


def _names(value: Any) -> Any:
    return () if value is None else (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_names)]
"""Of measures: one, or a list."""


def _margin(value: Any) -> Any:
    """A number is that of all shares, under the name `""`."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and not 0 < value < 1:
        raise ValueError(f"give a share between 0 and 1, such as 0.02 for 2 points, not {value}.")
    return {} if value is None else {"": value} if isinstance(value, (int, float)) else value


class EvaluationConfig(BaseModel):
    """What is under `evaluation:`."""

    model_config = STRICT

    tasks: Folder | None = Field(default=None, description="Folder of lm-eval task files, beside lm-eval's own tasks.")
    trust_task_code: bool = Field(
        default=False, description="Whether task files of that folder may run code (!function); read it first."
    )
    held_out: Annotated[dict[str, int | float] | Literal[False], BeforeValidator(_held_out)] = Field(
        default_factory=dict,
        description="Branch → rows of its own data that are kept from training, to score every arm on: a number, or a share "
        "below 1. [the smaller of 200 and 10 %]; false: none.",
    )
    validation: bool = Field(
        default=False,
        description="Whether every arm is also scored on the rows held out for validation, by measures called `…_validation`, on "
        "which something may be chosen.",
    )
    retained: Annotated[Path | list[str] | None, BeforeValidator(_retained)] = Field(
        default=None,
        description="What no branch should change: a file of rows like those of SFT, or a list of lm-eval tasks. "
        "[the base's own answers to prompts of the preference set]",
    )
    measures: MeasuresByTask = Field(
        default_factory=dict,
        description="lm-eval tasks or groups, of that folder or lm-eval's own, or presets "
        "(open-llm-leaderboard-v1, -v2, ifeval), as a list or with which number of each counts.",
    )
    skill: Names = Field(
        default=(),
        description="The measure of what the SFT branch teaches, or a list of those of several: the alignment tax is paid in "
        "it. [of each SFT branch the share of right answers to held-out rows, else their likelihood]",
    )
    preference: Names = Field(
        default=(),
        description="The measure of what the preference branch teaches, or a list. [the gain on its held-out rows]",
    )
    margin: Annotated[dict[str, PositiveFloat], BeforeValidator(_margin)] = Field(
        default_factory=dict,
        description="The largest difference that does not matter: of all shares, or measure → of that one, in its own unit. "
        "[2 points; 0.02 nats per token; 0.8 nats of a gain]",
    )
    keep_texts: bool = Field(
        default=False,
        description="Whether scores/ARM/items.jsonl holds what a model answered, not only what it came to.",
    )
    limit: int | None = Field(
        default=None, ge=1, description="Items of each task (of a group: of each of its tasks) at most."
    )
    batch_size: int = Field(default=8, ge=1, description="Prompts at once.")
    device: str = Field(
        default="auto", description="Where models are scored: cpu, cuda …; auto takes a GPU if there is one."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="In what the weights are scored. auto: the checkpoint's own, but bfloat16 for float32 on a GPU, and "
        "float32 on a CPU that is no faster in half precision.",
    )
    apply_chat_template: bool = Field(
        default=True, description="Ask in the tokenizer's chat template, which must then be there; false: plain text."
    )

    @field_validator("skill", "preference")
    @classmethod
    def _are_measures(cls, names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if "measures" not in info.data or info.data.get("held_out") is not False:
            return (
                names  # the measures have a mistake of their own, or it may be one of a branch, which `paft.yml` knows
            )
        return tuple(known("measure", name, measure_names(info.data["measures"])) for name in names)

    @property
    def by_task(self) -> dict[str, MeasureConfig]:
        """What is asked of lm-eval: the measures, and the tasks of what should be retained."""
        tasks = [task for task in self.retained if task not in self.measures] if isinstance(self.retained, list) else []
        name = OF_ALL[-1] if len(tasks) == 1 and OF_ALL[-1] not in measure_names(self.measures) else None
        return {**self.measures, **{task: MeasureConfig(name=name) for task in tasks}}

    @model_validator(mode="after")
    def _measures_something(self) -> EvaluationConfig:
        if self.validation and self.held_out is False:
            raise ValueError("validation: no rows are held out (held_out: false). Hold rows out, or leave it out.")
        if self.held_out is False and not self.measures:
            raise ValueError(
                "measures: missing, while held_out: false leaves nothing else to score on. Name lm-eval tasks."
            )
        return self


def read_measures(file: Path) -> EvaluationConfig:
    """The JSON that `python -m paft_plugin.evaluation.score --measures` takes.

    Raises:
        PaftError: No such file, no JSON, or all that is wrong in it.
    """
    return validate(EvaluationConfig, read_json_file(file, "It should hold `evaluation:` as JSON."), file)
