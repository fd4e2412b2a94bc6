"""A measure: one number of a model that lm-eval reports, with everything that was left open settled by its task."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from paft_plugin.errors import PaftError


@dataclass(frozen=True)
class Measure:
    """One column of a comparison, and where lm-eval reports it."""

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

    def content(self) -> dict[str, Any]:
        """What `scores.json` and `results.json` hold of it."""
        return asdict(self)

    @classmethod
    def from_content(cls, content: Mapping[str, Any]) -> Measure:
        """The other way round."""
        return cls(**content)


SCHEMA = 2
Score = dict[str, Any]
"""`scores`: measure → value; `stderr`: measure → standard error, where lm-eval has one; `n`: measure → items; `seconds`."""


def scores_content(measures: Sequence[Measure], scores: Mapping[str, Score]) -> dict[str, Any]:
    """What the file holds of each arm's score."""
    return {"schema": SCHEMA, "measures": [measure.content() for measure in measures], "scores": dict(scores)}


def read_scores(files: Iterable[Path]) -> tuple[list[Measure], dict[str, Score]]:
    """The measures that all files have in common, and each arm's score.

    Raises:
        PaftError: A file cannot be read, is of another version, or of other measures than the ones before.
    """
    measures: list[Measure] | None = None
    scores: dict[str, Score] = {}
    for file in files:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise PaftError(f"{file}: cannot be read ({error}). Score its arms again.") from None
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            raise PaftError(f"{file}: written by another version of paft-plugin. Score its arms again.")
        own = [Measure.from_content(each) for each in content["measures"]]
        if measures is not None and own != measures:
            raise PaftError(f"{file}: scored on other measures than the other arms. Score its arms again.")
        measures = own
        scores |= content["scores"]
    return measures or [], scores


BASE_ARM = "base"
REFERENCE_ARMS = ("sft", "sft-l1")
"""Which arm has the whole skill: the first of these that was measured."""


@dataclass(frozen=True)
class ArmResult:
    """What is known of one arm; a measure that isn't there wasn't measured."""

    arm: str
    scores: Mapping[str, float] = field(default_factory=dict)
    """By the measure's name."""
    stderr: Mapping[str, float] = field(default_factory=dict)
    """Standard errors, likewise."""
    n: Mapping[str, int] = field(default_factory=dict)
    """Numbers of scored items, likewise."""
    sparsity: Mapping[str, float] | None = None
    """Share of the delta's entries with |δ| ≤ threshold, by threshold (`"1e-05"`)."""
    model: str = ""
    """The arm's folder, relative to the run's."""

    @classmethod
    def from_score(
        cls, arm: str, score: Score, *, sparsity: Mapping[str, float] | None = None, model: str = ""
    ) -> ArmResult:
        """The result of `arm` from its entry in `scores.json`."""
        return cls(arm, score["scores"], score["stderr"], score["n"], sparsity, model)


@dataclass(frozen=True)
class Comparison:
    """All arms of a run, in the order of the table, and what they were measured by."""

    measures: Sequence[Measure]
    results: Sequence[ArmResult]
    branches: frozenset[str] = frozenset()
    """The arms that are one branch each, so that there is no tax to speak of."""
    skill: str | None = None
    """The measure of what the SFT branch teaches."""
    preference: str | None = None
    """The measure of what the preference branch teaches."""

    @property
    def thresholds(self) -> list[str]:
        """Every threshold at which any arm's sparsity was measured, the smallest first."""
        return sorted({key for result in self.results for key in result.sparsity or {}}, key=float)

    def alignment_tax(self) -> dict[str, float]:
        """`alignment_tax` of these arms; empty if no measure stands for the skill."""
        skill = next((measure for measure in self.measures if measure.name == self.skill), None)
        return {} if skill is None else alignment_tax(self.results, skill, self.branches)


def alignment_tax(results: Sequence[ArmResult], skill: Measure, branches: frozenset[str]) -> dict[str, float]:
    """What each arm loses on the SFT skill by being aligned, in the skill's own unit; below 0 it gained.

    It is relative to the arm `sft`, or `sft-l1` where there is no `sft`. Only arms that combine the skill with the preference
    have a tax, and only if both skills were measured.

    Args:
        results: The arms.
        skill: The measure that stands for the skill.
        branches: The arms that are one branch each, and so combine nothing.
    """
    measured = {result.arm: result.scores[skill.name] for result in results if skill.name in result.scores}
    reference = next((measured[arm] for arm in REFERENCE_ARMS if arm in measured), None)
    if reference is None:
        return {}
    sign = 1 if skill.higher_is_better else -1
    return {
        arm: sign * (reference - score)
        for arm, score in measured.items()
        if arm != BASE_ARM and arm not in REFERENCE_ARMS and arm not in branches
    }
