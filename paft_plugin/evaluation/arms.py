"""The rows of a comparison: which measures there are, what one arm scored, and its alignment tax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

REFERENCE_ARM = "sft"
ONE_BRANCH_ARMS = frozenset({"base", "sft", "sft-l1", "dpo", "orpo"})
"""Arms that never combine the skill with the preference, so that there is no tax to speak of."""


@dataclass(frozen=True)
class Measure:
    """One number of an arm and where lm-eval reports it (`results[task]["metric,filter"]`)."""

    name: str
    task: str
    metric: str
    filter: str
    fields: tuple[str, ...]
    """What every scored item must have; lm-eval would take a missing one's name for the text itself."""


MEASURES = (
    Measure("skill", "paft_skill", "exact_match", "answer", ("prompt", "answer")),
    Measure("preference", "paft_preference", "acc", "none", ("prompt", "chosen", "rejected")),
    Measure("style", "paft_style", "exact_match", "polite", ("prompt",)),
    Measure("retained", "paft_retained", "exact_match", "answer", ("task", "prompt", "answer")),
)


@dataclass(frozen=True)
class ArmResult:
    """What is known of one arm; every rate is a share from 0 to 1, and None where nothing was measured."""

    arm: str
    skill: float | None = None
    preference: float | None = None
    style: float | None = None
    retained: float | None = None
    sparsity: Mapping[str, float] | None = None
    """Share of the delta's entries with |δ| ≤ threshold, by threshold (`"1e-05"`)."""
    model: str = ""
    """The arm's folder, relative to the run's."""
    stderr: Mapping[str, float] = field(default_factory=dict)
    """Standard error of each measure, by its name."""

    @classmethod
    def from_score(
        cls, arm: str, score: Mapping[str, Any], *, sparsity: Mapping[str, float] | None = None, model: str = ""
    ) -> ArmResult:
        """The result of `arm` from its entry in the file that `paft_plugin.evaluation.score` writes."""
        names = [measure.name for measure in MEASURES]
        return cls(
            arm,
            **{name: score.get(name) for name in names},
            sparsity=sparsity,
            model=model,
            stderr={name: score[f"{name}_stderr"] for name in names if score.get(f"{name}_stderr") is not None},
        )


def alignment_tax(results: Sequence[ArmResult]) -> dict[str, float]:
    """What each arm loses on the SFT skill, relative to the arm `sft`, by being aligned; below 0 it gained.

    Only arms that combine the skill with the preference have a tax, and only if both skills were measured.
    """
    reference = next((result.skill for result in results if result.arm == REFERENCE_ARM), None)
    if reference is None:
        return {}
    return {
        result.arm: reference - result.skill
        for result in results
        if result.skill is not None and result.arm not in ONE_BRANCH_ARMS
    }
