"""What a diagnosis says: one check for each failure signature and what it is about, with everything that it rests on.

The functions that check stand in `signatures/`, a file for each signature, and register themselves with `of_branch` or `of_pair`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from paft_plugin.inspection.diagnosis.facts import Facts

SCHEMA = 2
"""1 had one SFT branch, and its twin."""
RECIPE = "axolotl paft recipe"
"""Where a remedy is an option of that command."""
State = Literal["found", "clear", "unknown"]
"""`unknown`: what it takes to decide is missing."""
Confidence = Literal["low", "medium", "high"]
SURE = "All evidence agrees, and is clear of its thresholds."
LEVELS: tuple[Confidence, ...] = ("high", "medium", "low")


@dataclass(frozen=True)
class Evidence:
    """One number, where it comes from, and which side of its threshold it is on."""

    what: str
    """What was measured, in words that a table can hold."""
    value: float
    source: str
    """The file that it was read from, relative to the diagnosed folder where it lies in there."""
    threshold: float | None = None
    """Where this evidence begins to speak for the signature; None for what is shown for scale only. `DIAGNOSIS.md` says why."""
    above: bool = False
    """Whether values at or above the threshold speak for the signature; if not, values at or below it do."""
    slack: float = 0.0
    """Closer than this to its threshold a value says little, either way."""

    @property
    def speaks_for(self) -> bool | None:
        """Whether the threshold is reached; None without one."""
        if self.threshold is None:
            return None
        return self.value >= self.threshold if self.above else self.value <= self.threshold

    @property
    def close(self) -> bool:
        """Whether the value lies so near to its threshold that the next run might fall on the other side."""
        return self.threshold is not None and abs(self.value - self.threshold) < self.slack


@dataclass(frozen=True)
class Remedy:
    """A change that would mend it."""

    setting: str
    """A key of an axolotl config (`paft_l1_lambda`) or an option of `axolotl paft recipe` (`--weight-sft`)."""
    where: str
    """What to change it in: `configs/sft-l1.yml`, `axolotl paft recipe` …"""
    old: str | None
    """What it was; None if that is not known, or if it was not set."""
    new: str
    reason: str
    """How `new` follows from this run."""


@dataclass(frozen=True)
class Check:
    """One failure signature, looked for in one branch or one pair of branches."""

    signature: str
    branches: tuple[str, ...]
    """The branch or the pair that was looked at."""
    state: State
    culprit: str | None
    """The branch that causes it; None unless it was found."""
    message: str
    """What is the matter, or what was looked at and is well."""
    evidence: tuple[Evidence, ...]
    missing: tuple[str, ...]
    """What would have been looked at too, and where it was looked for."""
    confidence: Confidence
    """How sure it is that `state` is right."""
    confidence_reason: str
    remedies: tuple[Remedy, ...] = ()

    @property
    def found(self) -> bool:
        """Whether the signature is there."""
        return self.state == "found"


@dataclass(frozen=True)
class Diagnosis:
    """Every check of one run."""

    folder: str
    sft: tuple[str, ...]
    """The SFT branches that are fused."""
    preferences: tuple[str, ...]
    twins: Mapping[str, str]
    """SFT branch → its dense twin: the same training without the penalty."""
    checks: tuple[Check, ...]

    @property
    def findings(self) -> tuple[Check, ...]:
        """The checks that found their signature."""
        return tuple(check for check in self.checks if check.found)

    @property
    def healthy(self) -> bool:
        """Whether no check found anything."""
        return not self.findings

    def as_json(self) -> dict[str, Any]:
        """Plain data, for a JSON file."""
        content = asdict(self)
        for check, plain in zip(self.checks, content["checks"], strict=True):
            for one, evidence in zip(check.evidence, plain["evidence"], strict=True):
                evidence["speaks_for"] = one.speaks_for
        return {"schema": SCHEMA, "healthy": self.healthy, **content}


def judged(
    signature: str,
    branches: tuple[str, ...],
    state: State,
    message: str,
    *,
    evidence: Sequence[Evidence] = (),
    deciding: Sequence[Evidence] = (),
    weighed: Sequence[Evidence] | None = None,
    missing: Sequence[str] = (),
    culprit: str | None = None,
    remedies: Sequence[Remedy] = (),
) -> Check:
    """A check with its confidence, which begins high and falls a step for each doubt.

    The doubts: a `deciding` value close to its threshold, evidence that speaks against the outcome (of `weighed`; of all, if
    None), evidence that is missing.
    """
    close = [item for item in deciding if item.close]
    against = [item for item in (evidence if weighed is None else weighed) if item.speaks_for is (state != "found")]
    doubts = [
        *(["Close to a threshold: " + "; ".join(item.what for item in close)] if close else []),
        *(["Speaks against it: " + "; ".join(item.what for item in against)] if against else []),
        *(["Evidence is missing"] if missing else []),
    ]
    level = LEVELS[min(len(doubts), len(LEVELS) - 1)]
    reason = f"{'. '.join(doubts)}." if doubts else SURE
    given, missed = tuple(evidence), tuple(missing)
    return Check(signature, branches, state, culprit, message, given, missed, level, reason, tuple(remedies))


def unknown(signature: str, branches: tuple[str, ...], message: str, missing: Sequence[str] = ()) -> Check:
    """A check that what is there does not decide."""
    return Check(signature, branches, "unknown", None, message, (), tuple(missing), "low", "Nothing to judge by.")


BranchCheck = Callable[["Facts", str, "str | None"], Check]
"""Looks for a signature in one SFT branch: facts, branch, its dense twin if there is one."""
Excuses = Mapping[str, str]
"""Branch → the signature that was found in it alone: it may explain what is seen of a pair."""
PairCheck = Callable[["Facts", str, str, Excuses], Check]
"""Looks for a signature in two branches: facts, the two, an SFT branch before a preference branch, and excuses."""
Signature = TypeVar("Signature", BranchCheck, PairCheck)
BRANCH_CHECKS: list[BranchCheck] = []
PAIR_CHECKS: list[PairCheck] = []
"""Of two that are fused."""
ANY_PAIR_CHECKS: list[PairCheck] = []
"""Of any two."""


def in_order(checks: list[Signature]) -> list[Signature]:
    """The checks by the names of their files, whichever was imported first."""
    return sorted(checks, key=lambda check: check.__module__)


def of_branch(check: BranchCheck) -> BranchCheck:
    """Have every diagnosis make this check of each SFT branch (decorator)."""
    BRANCH_CHECKS.append(check)
    return check


def of_pair(check: PairCheck) -> PairCheck:
    """Have every diagnosis make this check of every two branches that are fused (decorator)."""
    PAIR_CHECKS.append(check)
    return check


def of_any_pair(check: PairCheck) -> PairCheck:
    """Have every diagnosis make this check of every two branches, fused or not (decorator)."""
    ANY_PAIR_CHECKS.append(check)
    return check
