"""What arms were measured: `scores.json` of one evaluation, and `results.json` of a whole run.

A measure that is missing from an arm was not taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_serializer, field_validator

from paft_plugin.errors import PaftError, raise_if_any
from paft_plugin.evaluation.arms import Arm, Kind, Role, arm_named, read_run
from paft_plugin.evaluation.held_out_rows import HELD_OUT, KL, RETAINED
from paft_plugin.evaluation.items import ITEMS_FILE, ItemScore, read_items
from paft_plugin.files import JsonFile, inside
from paft_plugin.formats import reach

if TYPE_CHECKING:
    from paft_plugin.evaluation.statistics import Interval, MeanChange, Values

RESULTS = "results.json"
"""In the folder of a run."""
SCORES_FILE = "scores.json"
"""In the folder of an arm's scores."""

VALIDATION = "_validation"
"""Ends the name of what is measured on validation items beside the test items: something may be chosen by it, nothing judged."""
NATS = ("nll", "gain", KL)
"""Metrics of held-out rows that are no shares."""


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
    margin: float | None = None
    """The largest difference that does not matter, in the measure's unit; None where nobody said."""

    @property
    def held_out(self) -> str | None:
        """The branch whose rows it is taken on; None if they are no branch's."""
        folder, _, branch = self.task.partition("/")
        return branch if branch not in ("", RETAINED) and folder == HELD_OUT.name else None

    @property
    def is_distance(self) -> bool:
        """Whether it says how far an arm is from the base, which is no merit by itself."""
        return self.held_out is None and self.metric == KL

    @property
    def in_nats(self) -> bool:
        """Whether it is no share, wherever its values lie."""
        return self.task.partition("/")[0] == HELD_OUT.name and self.metric in NATS

    @property
    def is_share(self) -> bool:
        """Whether it is one by its name; of lm-eval's metrics only the values can say that."""
        return self.task.partition("/")[0] == HELD_OUT.name and not self.in_nats

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

    def with_more(self, other: ArmScore) -> ArmScore:
        """Together with what the same model scored on other measures."""
        together = {key: {**getattr(self, key), **getattr(other, key)} for key in ("scores", "stderr", "n")}
        return self.model_copy(update={**together, "seconds": self.seconds + other.seconds})


class ScoresFile(JsonFile):
    """`scores.json`: what the arms of one evaluation scored."""

    SCHEMA: ClassVar[int] = 2
    AGAIN: ClassVar[str] = "Score its arms again."

    measures: tuple[Measure, ...]
    scores: dict[str, ArmScore]
    """By the arm's name."""
    request: str = ""
    """Fingerprint of what its arm is made of and scored on; none of what is scored beside a base that was not scored before."""


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


class Swaps(BaseModel):
    """How many items of a measure of right and wrong changed from one arm to another: averages hide it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    lost: int
    """Right → wrong."""
    won: int
    """Wrong → right."""
    items: int


@dataclass(frozen=True)
class ItemValues:
    """What an arm came to on every item of one measure, in the order of the items' names."""

    names: tuple[str, ...]
    values: Values
    sources: tuple[str | None, ...]


def _by_threshold(sparsity: dict[str, float]) -> dict[str, float]:
    sorted(sparsity, key=float)  # as whoever compares arms does: a key that is no number is a ValueError here
    return sparsity


Sparsity = Annotated[dict[str, float], AfterValidator(_by_threshold)]
"""Threshold → share of the delta's entries that are no larger."""


class ArmResult(BaseModel):
    """What is known of one arm."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, arbitrary_types_allowed=True)

    arm: Arm
    """In the file its name alone: what it is made of stands in the run's `configs/run.json`."""
    scores: dict[str, float] = Field(default_factory=dict)
    """By the measure's name."""
    stderr: dict[str, float] = Field(default_factory=dict)
    n: dict[str, int] = Field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """95 %, of those of whose spread something is known."""
    taxes: dict[str, float] = Field(default_factory=dict)
    """Goal → what it loses of that by combining branches (see `alignment_tax`); the alignment tax is that on a skill."""
    swaps: dict[str, dict[str, Swaps]] = Field(default_factory=dict)
    """SFT alone or base → measure → how many items changed from there to here."""
    sparsity: Sparsity = Field(default_factory=dict)
    """Share of the delta's entries with |δ| ≤ threshold, by threshold (`"1e-05"`)."""
    model: str = ""
    """The arm's folder, relative to the run's."""
    items: dict[str, Any] = Field(default_factory=dict, exclude=True, repr=False)
    """Measure → `ItemValues`, of those whose items are known: they stand in the arm's `items.jsonl`."""

    @property
    def name(self) -> str:
        """What tables and plots call it."""
        return self.arm.name

    def reach(self, measure: str) -> float | None:
        """From the score to the farther end of its 95 % interval."""
        ends = self.intervals.get(measure)
        return None if ends is None else reach(self.scores[measure], ends)

    @field_validator("arm", mode="before")
    @classmethod
    def _arm_of_its_name(cls, arm: object) -> object:
        return arm_named(arm) if isinstance(arm, str) else arm

    @field_validator("scores", "stderr", "n", "intervals", "taxes", "swaps", "sparsity", mode="before")
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

    @field_serializer("sparsity")
    def _null_for_none(self, sparsity: dict[str, float]) -> dict[str, float] | None:
        return sparsity or None


class Results(JsonFile):
    """`results.json`: every arm of a run as it was measured, unrounded, in the order of the table."""

    SCHEMA: ClassVar[int] = 3
    AGAIN: ClassVar[str] = "Run the same command again to write it anew."

    measures: tuple[Measure, ...]
    """Those by which arms are judged."""
    validation: tuple[Measure, ...] = ()
    """The same on validation items, by the same names with `_validation`: on no page, and no goals."""
    skills: tuple[str, ...] = ()
    """The measures of what the SFT branches teach."""
    preferences: tuple[str, ...] = ()
    """The measures of what the preference branches teach."""
    thresholds: tuple[str, ...] = ()
    """Every threshold at which any arm's sparsity was measured, the smallest first."""
    arms: tuple[ArmResult, ...]

    @field_validator("thresholds", mode="before")
    @classmethod
    def _smallest_first(cls, thresholds: object) -> object:
        return sorted(map(str, thresholds), key=float) if isinstance(thresholds, Iterable) else ()

    @classmethod
    def upgraded(cls, content: dict[str, Any], schema: object, path: Path) -> dict[str, Any]:
        if schema != 2:
            return super().upgraded(content, schema, path)
        goals = {f"{role}s": [] if content.get(role) is None else [content[role]] for role in ("skill", "preference")}
        arms = [{**arm, "taxes": dict.fromkeys(goals["skills"], arm.get("alignment_tax"))} for arm in content["arms"]]
        measures = [Measure(**measure) for measure in content["measures"]]
        arms = [
            one.model_copy(update={"intervals": _intervals(one, measures)}).model_dump()
            for one in map(ArmResult.model_validate, arms)
        ]
        return {**content, **goals, "arms": arms}

    def measure(self, name: str) -> Measure:
        """The measure of that name, which is there."""
        return next(measure for measure in (*self.measures, *self.validation) if measure.name == name)

    def arm(self, name: str | None) -> ArmResult | None:
        """The arm of that name, if it is there."""
        return next((arm for arm in self.arms if arm.name == name), None)

    def first(self, kind: Kind) -> ArmResult | None:
        """The first arm of that kind, if there is any."""
        return next((arm for arm in self.arms if arm.arm.kind == kind), None)

    @property
    def goals(self) -> tuple[str, ...]:
        """The measures of what the branches teach, the skills first."""
        return (*self.skills, *self.preferences)

    @property
    def others(self) -> list[Measure]:
        """The measures that are neither a skill nor a preference."""
        return [measure for measure in self.measures if measure.name not in self.goals]

    def goal(self, branch: Arm) -> str | None:
        """The measure of what a branch teaches: that on its own rows, else the one that there is for all of its role."""
        goals = self.skills if branch.role == "sft" else self.preferences
        own = (name for name in goals if self.measure(name).held_out in (branch.name, branch.twin))
        return next(own, goals[0] if len(goals) == 1 else None)

    def contradictions(self) -> list[str]:
        """What cannot be true of a whole run, in full sentences."""
        known = {measure.name for measure in self.measures}
        problems = [
            f"{role} {name!r} is none of its measures. Correct `{role}`."
            for role, goals in (("skills", self.skills), ("preferences", self.preferences))
            for name in goals
            if name not in known
        ]
        names = [arm.name for arm in self.arms]
        problems += [
            f"arm {name!r} is there twice. Remove one." for name in sorted(set(names)) if names.count(name) > 1
        ]
        return problems if names else [*problems, "no arms. Run the pipeline to its end first."]


def gather(
    measures: Sequence[Measure],
    arms: Sequence[ArmResult],
    skills: Sequence[str] = (),
    preferences: Sequence[str] = (),
    margins: Mapping[str, float] | None = None,
) -> Results:
    """The results of all arms of a run: with intervals, margins, taxes, and what changed from SFT alone and from the base.

    Where no goal is named, held-out rows are: whether the answer is right, or how likely it is where that tells no arms apart,
    and the gain of the margin.
    What was not measured is no goal. `margins` are by measure; that of `""` is of all shares.
    """
    every, validation = measures, _of_validation(measures, (*skills, *preferences))
    measures = [measure for measure in every if measure not in validation]
    measured = {measure.name: measure for measure in measures}
    telling = [measure for measure in measures if _tells(measure, arms)]
    skills = [name for name in skills if name in measured] or held_out_goals(telling, "match", "nll")
    skills = skills or held_out_goals(measures, "match", "nll")
    preferences = [name for name in preferences if name in measured] or held_out_goals(measures, "gain")
    taxes = {skill: alignment_tax(arms, measured[skill]) for skill in skills}
    taxes |= {name: alignment_tax(arms, measured[name], "preference") for name in preferences}
    references = dict.fromkeys(
        [
            *(one.name for skill in skills if (one := branch_reference(arms, measured[skill]))),
            *(one.name for one in arms if one.arm.kind == "base"),
        ]
    )
    by_name = {one.name: one for one in arms}
    goals_first = sorted(measures, key=lambda one: one.name not in (*skills, *preferences))
    return Results(
        measures=tuple(replace(one, margin=_margin(one, arms, margins or {})) for one in goals_first),
        validation=tuple(validation),
        skills=tuple(skills),
        preferences=tuple(preferences),
        thresholds=tuple({threshold for arm in arms for threshold in arm.sparsity}),
        arms=tuple(
            one.model_copy(
                update={
                    "intervals": _intervals(one, every),
                    "taxes": {skill: tax[one.name] for skill, tax in taxes.items() if one.name in tax},
                    "swaps": {
                        name: found for name in references if name != one.name and (found := _swaps(by_name[name], one))
                    },
                }
            )
            for one in arms
        ),
    )


def _of_validation(measures: Sequence[Measure], goals: Sequence[str]) -> list[Measure]:
    """What is measured on validation items beside the same on test items; what the user has named as a goal is judged by."""
    return [one for one in measures if is_validation(one.name, measures) and one.name not in goals]


def is_validation(name: str, measures: Sequence[Measure]) -> bool:
    """Whether a measure is the same on validation items as another of `measures` on test items."""
    return name.endswith(VALIDATION) and any(one.name == name.removesuffix(VALIDATION) for one in measures)


def _tells(measure: Measure, arms: Sequence[ArmResult]) -> bool:
    """Whether the arms differ, and a share is not at one end of its range in all of them."""
    scores = [arm.scores[measure.name] for arm in arms if measure.name in arm.scores]
    if len(set(scores)) < 2:
        return False
    return measure.in_nats or (max(scores) > SHARE_MARGIN and min(scores) < 1 - SHARE_MARGIN)


def held_out_goals(measures: Sequence[Measure], *metrics: str) -> list[str]:
    """For each branch with held-out rows the first of `metrics` that was taken on them."""
    goals: dict[str, str] = {}
    for metric in metrics:
        for measure in measures:
            if measure.held_out and measure.metric == metric:
                goals.setdefault(measure.held_out, measure.name)
    return list(goals.values())


SHARE_MARGIN = 0.02
"""Two points; of nats per token about 2 % of the perplexity."""
GAIN_MARGIN = 0.8
"""Nats: at the usual β = 0.1 it moves the probability that DPO gives to the better answer by 2 points at most (β/4 · 0.8)."""


def _margin(measure: Measure, arms: Sequence[ArmResult], given: Mapping[str, float]) -> float | None:
    if measure.name in given:
        return given[measure.name]
    if measure.held_out and measure.metric == "gain":
        return GAIN_MARGIN
    if measure.in_nats:
        return SHARE_MARGIN
    scores = [arm.scores[measure.name] for arm in arms if measure.name in arm.scores]
    return given.get("", SHARE_MARGIN) if all(0 <= score <= 1 for score in scores) else None


def _intervals(arm: ArmResult, measures: Iterable[Measure]) -> dict[str, Interval]:
    from paft_plugin.evaluation.statistics import interval_of_score, is_right_or_wrong, mean_interval, share_interval

    found: dict[str, Interval] = {}
    for measure in measures:
        name, items = measure.name, arm.items.get(measure.name)
        if items is not None and len(items.values) > 1:
            is_share = not measure.in_nats and is_right_or_wrong(items.values)
            found[name] = (share_interval if is_share else mean_interval)(items.values, items.sources)
        elif name in arm.scores:
            ends = interval_of_score(arm.scores[name], arm.stderr.get(name), arm.n.get(name, 0))
            found |= {name: ends} if ends else {}
    return found


def _swaps(before: ArmResult, after: ArmResult) -> dict[str, Swaps]:
    from paft_plugin.evaluation.statistics import is_right_or_wrong

    found = {}
    for name in after.items:
        pair = paired_values(before, after, name)
        if pair is not None and all(map(is_right_or_wrong, pair)):
            changes = pair[1] - pair[0]
            found[name] = Swaps(lost=int((changes < 0).sum()), won=int((changes > 0).sum()), items=len(changes))
    return found


def paired_values(before: ArmResult, after: ArmResult, measure: str) -> tuple[Values, Values] | None:
    """What two arms came to on the items of a measure; None if they are not known of both, or not the same."""
    items: list[ItemValues] = [arm.items[measure] for arm in (before, after) if measure in arm.items]
    if len(items) < 2 or items[0].names != items[1].names:
        return None
    return items[0].values, items[1].values


def change_between(before: ArmResult, after: ArmResult, measure: Measure) -> MeanChange | None:
    """How a measure changes, by the arms' items in pairs, else by both standard errors; None where neither is known."""
    from paft_plugin.evaluation.statistics import change_of_mean, change_of_share, is_right_or_wrong, unpaired_change

    name = measure.name
    pair = paired_values(before, after, name)
    if pair is not None and len(pair[0]) > 1:
        is_share = not measure.in_nats and all(map(is_right_or_wrong, pair))
        return (change_of_share if is_share else change_of_mean)(*pair, before.items[name].sources)
    errors = [standard_error(arm, name) for arm in (before, after)]
    known = [error for error in errors if error is not None]
    if len(known) < len(errors):
        return None
    items = min(arm.n.get(name, 0) for arm in (before, after))
    return unpaired_change(after.scores[name] - before.scores[name], math.hypot(*known), items)


def item_values(run: Path, arm: str, scores: Mapping[str, float]) -> dict[str, ItemValues]:
    """Measure → its items in the folder of a run, of those that the score is the mean of; of others nothing can be paired.

    Raises:
        PaftError: The file cannot be read.
    """
    import numpy as np

    file = inside(run, Path("scores") / arm / ITEMS_FILE)
    by_measure: dict[str, dict[str, ItemScore]] = {}
    for item in read_items(file) if file.is_file() else ():
        by_measure.setdefault(item.measure, {})[item.item] = item
    found = {}
    for name, items in by_measure.items():
        names = tuple(sorted(items))
        values = np.array([items[each].value for each in names])
        if name in scores and math.isclose(values.mean(), scores[name], rel_tol=1e-4, abs_tol=1e-6):
            found[name] = ItemValues(names, values, tuple(items[each].source for each in names))
    return found


def read_results(run: Path) -> Results | None:
    """The results in the folder `run`, each arm as its `run.json` describes it and with its items; None if there are none.

    Raises:
        PaftError: A file is damaged, of a version that cannot be read, or contradicts itself; all that is wrong.
    """
    file = run / RESULTS
    if not file.is_file():
        return None
    results = Results.read(file)
    raise_if_any([f"{file}: {problem}" for problem in results.contradictions()])
    planned = read_run(run)
    arms = [
        one.model_copy(
            update={
                "arm": one.arm if planned is None else arm_named(one.name, planned.arms),
                "items": item_values(run, one.name, one.scores),
            }
        )
        for one in results.arms
    ]
    return results.model_copy(update={"arms": tuple(arms)})


def branch_reference(arms: Iterable[ArmResult], goal: Measure, role: Role = "sft") -> ArmResult | None:
    """The arm that has the whole of a goal: its own branch, else the best of its role; if possible without the penalty.

    Other forms of a branch are that only where there is no other: of many, the best is in part the luckiest. A control never is.
    """
    sign = 1 if goal.higher_is_better else -1
    trained = [one for one in arms if one.arm.kind == "branch" and one.arm.role == role and one.arm.control is None]
    measured = [one for one in trained if goal.name in one.scores]
    return min(
        measured,
        key=lambda one: (one.arm.penalised, one.arm.beside, one.name != goal.held_out, -sign * one.scores[goal.name]),
        default=None,
    )


def alignment_tax(arms: Sequence[ArmResult], goal: Measure, role: Role = "sft") -> dict[str, float]:
    """What each arm of a run loses, by combining branches, of what one of them teaches; in the goal's unit, below 0 it gained.

    It is relative to `branch_reference`. Only arms that combine branches have a tax, and only if both were measured.
    """
    reference = branch_reference(arms, goal, role)
    if reference is None:
        return {}
    sign = 1 if goal.higher_is_better else -1
    return {
        one.name: sign * (reference.scores[goal.name] - one.scores[goal.name])
        for one in arms
        if one.arm.is_aligned and goal.name in one.scores
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
