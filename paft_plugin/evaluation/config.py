"""`evaluation:` in `paft.yml`: what every arm is scored on, and how. A search's `objectives` are spelled the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field, ValidationInfo, field_validator

from paft_plugin.reading import read_json_file
from paft_plugin.schema import STRICT, Folder, MappingOfNames, known, raise_lines, validate


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


MeasuresByTask = Annotated[dict[str, MeasureConfig], MappingOfNames, AfterValidator(_different_names)]
"""lm-eval task or group → which number of it counts."""


class EvaluationConfig(BaseModel):
    """What is under `evaluation:`."""

    model_config = STRICT

    tasks: Folder | None = Field(
        default=None, description="Folder of lm-eval task files. Left out: lm-eval's own tasks."
    )
    trust_task_code: bool = Field(
        default=False, description="Whether task files of that folder may run code (!function); read it first."
    )
    measures: MeasuresByTask = Field(
        min_length=1, description="lm-eval tasks or groups, as a list or with which number of each counts."
    )
    skill: str | None = Field(
        default=None, description="The measure of what the SFT branch teaches: the alignment tax is paid in it."
    )
    preference: str | None = Field(default=None, description="The measure of what the preference branch teaches.")
    limit: int | None = Field(
        default=None, ge=1, description="Items of each task (of a group: of each of its tasks) at most."
    )
    batch_size: int = Field(8, ge=1, description="Prompts at once.")
    device: str = Field("auto", description="Where models are scored: cpu, cuda …; auto takes a GPU if there is one.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="In what the weights are scored. auto: the checkpoint's own, but bfloat16 for float32 on a GPU.",
    )
    apply_chat_template: bool = Field(
        True, description="Ask in the tokenizer's chat template, which must then be there; false: plain text."
    )

    @field_validator("skill", "preference")
    @classmethod
    def _is_a_measure(cls, name: str | None, info: ValidationInfo) -> str | None:
        if name is None or "measures" not in info.data:  # the measures have a mistake of their own
            return name
        return known("measure", name, measure_names(info.data["measures"]))


def read_measures(file: Path) -> EvaluationConfig:
    """The JSON that `python -m paft_plugin.evaluation.score --measures` takes.

    Raises:
        PaftError: No such file, no JSON, or all that is wrong in it.
    """
    return validate(EvaluationConfig, read_json_file(file, "It should hold `evaluation:` as JSON."), file)
