"""What arms were measured: `scores.json` of one evaluation, and `results.json` of a whole run.

A measure that is missing from an arm was not taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field, field_serializer, field_validator

from paft_plugin.errors import PaftError, raise_if_any
from paft_plugin.evaluation.arms import Arm, Kind, arm_named, read_run
from paft_plugin.files import JsonFile

RESULTS = "results.json"
"""In the folder of a run."""


@dataclass(frozen=True)
class Measure:
    """One number of a model that lm-eval reports; everything that `paft.yml` left open is settled."""

    name: str
    """What tables and plots call it."""
    task: str
    """lm-eval's task or group."""
    metric: str
    filter: str
    higher_is_better: bool

    @property
    def key(self) -> str:
        """As lm-eval reports it."""
        return f"{self.metric},{self.filter}"

    @property
    def direction(self) -> str:
        """In the word of `direction:`, and of Optuna."""
        return "maximize" if self.higher_is_better else "minimize"

    @property
    def axis_label(self) -> str:
        """What stands beside an axis of a plot."""
        return f"{self.name} ({'more' if self.higher_is_better else 'less'} is better)"


class ArmScore(BaseModel):
    """What one model scored, by the name of the measure."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    scores: dict[str, float]
    stderr: dict[str, float] = Field(default_factory=dict)
    """Standard errors, of those of which lm-eval has one."""
    n: dict[str, int] = Field(default_factory=dict)
    """Numbers of scored items."""
    seconds: float = 0.0


class ScoresFile(JsonFile):
    """`scores.json`: what the arms of one evaluation scored."""

    SCHEMA: ClassVar[int] = 2
    AGAIN: ClassVar[str] = "Score its arms again."

    measures: tuple[Measure, ...]
    scores: dict[str, ArmScore]
    """By the arm's name."""


def read_scores(files: Iterable[Path]) -> tuple[tuple[Measure, ...], dict[str, ArmScore]]:
    """The measures that all files have in common, and each arm's score.

    Raises:
        PaftError: A file cannot be read, is of another version, or of other measures than the ones before.
    """
    measures: tuple[Measure, ...] = ()
    scores: dict[str, ArmScore] = {}
    for file in files:
        found = ScoresFile.read(file)
        if measures and found.measures != measures:
            raise PaftError(f"{file}: scored on other measures than the other arms. {ScoresFile.AGAIN}")
        measures = found.measures
        scores |= found.scores
    return measures, scores


class ArmResult(BaseModel):
    """What is known of one arm."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    arm: Arm
    """In the file its name alone: what it is made of stands in the run's `configs/run.json`."""
    scores: dict[str, float] = Field(default_factory=dict)
    """By the measure's name."""
    stderr: dict[str, float] = Field(default_factory=dict)
    n: dict[str, int] = Field(default_factory=dict)
    alignment_tax: float | None = None
    """What it loses on the SFT skill by being aligned (see `alignment_tax`)."""
    sparsity: dict[str, float] = Field(default_factory=dict)
    """Share of the delta's entries with |δ| ≤ threshold, by threshold (`"1e-05"`)."""
    model: str = ""
    """The arm's folder, relative to the run's."""

    @property
    def name(self) -> str:
        """What tables and plots call it."""
        return self.arm.name

    @field_validator("arm", mode="before")
    @classmethod
    def _arm_of_its_name(cls, arm: object) -> object:
        return arm_named(arm) if isinstance(arm, str) else arm

    @field_validator("scores", "stderr", "n", "sparsity", mode="before")
    @classmethod
    def _without_blanks(cls, values: object) -> object:
        """null, and a number that is not finite, are what was not measured."""
        if not isinstance(values, Mapping):
            return values or {}
        return {
            name: value
            for name, value in values.items()
            if value is not None and not (isinstance(value, float) and not math.isfinite(value))
        }

    @field_validator("model", mode="before")
    @classmethod
    def _no_model(cls, model: object) -> object:
        return model or ""

    @field_serializer("arm")
    def _name_alone(self, arm: Arm) -> str:
        return arm.name

    @field_validator("sparsity")
    @classmethod
    def _by_threshold(cls, sparsity: dict[str, float]) -> dict[str, float]:
        sorted(sparsity, key=float)  # as whoever compares arms does: a key that is no number is a ValueError here
        return sparsity

    @field_serializer("sparsity")
    def _null_for_none(self, sparsity: dict[str, float]) -> dict[str, float] | None:
        return sparsity or None


class Results(JsonFile):
    """`results.json`: every arm of a run as it was measured, unrounded, in the order of the table."""

    SCHEMA: ClassVar[int] = 2
    AGAIN: ClassVar[str] = "Run the same command again to write it anew."

    measures: tuple[Measure, ...]
    skill: str | None = None
    """The measure of what the SFT branch teaches."""
    preference: str | None = None
    """The measure of what the preference branch teaches."""
    thresholds: tuple[str, ...] = ()
    """Every threshold at which any arm's sparsity was measured, the smallest first."""
    arms: tuple[ArmResult, ...]

    @field_validator("thresholds", mode="before")
    @classmethod
    def _smallest_first(cls, thresholds: object) -> object:
        return sorted(map(str, thresholds), key=float) if isinstance(thresholds, Iterable) else ()

    def measure(self, name: str) -> Measure:
        """The measure of that name, which is there."""
        return next(measure for measure in self.measures if measure.name == name)

    def arm(self, name: str | None) -> ArmResult | None:
        """The arm of that name, if it is there."""
        return next((arm for arm in self.arms if arm.name == name), None)

    def first(self, kind: Kind) -> ArmResult | None:
        """The first arm of that kind, if there is any."""
        return next((arm for arm in self.arms if arm.arm.kind == kind), None)

    @property
    def others(self) -> list[Measure]:
        """The measures that are neither the skill nor the preference."""
        return [measure for measure in self.measures if measure.name not in (self.skill, self.preference)]

    def contradictions(self) -> list[str]:
        """What cannot be true of a whole run, in full sentences."""
        known = {measure.name for measure in self.measures}
        problems = [
            f"{role} {name!r} is none of its measures. Correct `{role}`."
            for role, name in (("skill", self.skill), ("preference", self.preference))
            if name is not None and name not in known
        ]
        names = [arm.name for arm in self.arms]
        problems += [
            f"arm {name!r} is there twice. Remove one." for name in sorted(set(names)) if names.count(name) > 1
        ]
        return problems if names else [*problems, "no arms. Run the pipeline to its end first."]


def gather(
    measures: Sequence[Measure], arms: Sequence[ArmResult], skill: str | None = None, preference: str | None = None
) -> Results:
    """The results of all arms of a run, with the alignment tax of those that have one; what was not measured is no goal."""
    measured = {measure.name: measure for measure in measures}
    tax = alignment_tax(arms, measured[skill]) if skill in measured else {}
    return Results(
        measures=tuple(measures),
        skill=skill if skill in measured else None,
        preference=preference if preference in measured else None,
        thresholds=tuple({threshold for arm in arms for threshold in arm.sparsity}),
        arms=tuple(arm.model_copy(update={"alignment_tax": tax.get(arm.name)}) for arm in arms),
    )


def read_results(run: Path) -> Results | None:
    """The results in the folder `run`, each arm as its `run.json` describes it; None if there are none.

    Raises:
        PaftError: A file is damaged, of a version that cannot be read, or contradicts itself; all that is wrong.
    """
    file = run / RESULTS
    if not file.is_file():
        return None
    results = Results.read(file)
    raise_if_any([f"{file}: {problem}" for problem in results.contradictions()])
    planned = read_run(run)
    if planned is None:
        return results
    arms = [one.model_copy(update={"arm": arm_named(one.name, planned.arms)}) for one in results.arms]
    return results.model_copy(update={"arms": tuple(arms)})


def skill_reference(arms: Iterable[ArmResult], skill: str) -> ArmResult | None:
    """The arm that has the whole skill: the SFT branch, if it was measured without the penalty, else with it."""
    measured = [one for one in arms if one.arm.is_sft and skill in one.scores]
    return min(measured, key=lambda one: one.arm.penalised, default=None)


def alignment_tax(arms: Sequence[ArmResult], skill: Measure) -> dict[str, float]:
    """What each arm of a run loses on the SFT skill by being aligned, in the skill's own unit; below 0 it gained.

    It is relative to `skill_reference`. Only arms that combine the skill with the preference have a tax, and only if both
    skills were measured.
    """
    reference = skill_reference(arms, skill.name)
    if reference is None:
        return {}
    sign = 1 if skill.higher_is_better else -1
    return {
        one.name: sign * (reference.scores[skill.name] - one.scores[skill.name])
        for one in arms
        if one.arm.is_aligned and skill.name in one.scores
    }


def standard_error(arm: ArmResult, measure: str) -> float | None:
    """The standard error of one score, or None if nothing is known of it.

    A share of exactly 0 or 1 is reported with an error of 0, as if it were certain. With n items counted that error, or a
    missing one, is replaced by that of (k + 1) / (n + 2), the rule of succession.
    """
    score, reported, items = arm.scores.get(measure), arm.stderr.get(measure), arm.n.get(measure, 0)
    if score is None:
        return None
    if not reported and items > 0 and 0 <= score <= 1:
        share = (score * items + 1) / (items + 2)
        return math.sqrt(share * (1 - share) / (items + 2))
    return reported
