"""From evidence to a check: how sure one can be."""

from __future__ import annotations

from collections.abc import Sequence

from paft_plugin.inspection.verdict import Check, Confidence, Evidence, Remedy, Signature, State

LEVELS: tuple[Confidence, ...] = ("high", "medium", "low")


def judged(
    signature: Signature,
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

    The doubts: a deciding value close to its threshold, evidence that speaks against the outcome, evidence that is missing.

    Args:
        evidence: all of it.
        deciding: those that the outcome was decided by.
        weighed: those that may speak against it; all, if None.
    """
    close = [item for item in deciding if item.close]
    against = [item for item in (evidence if weighed is None else weighed) if item.speaks_for is (state != "found")]
    doubts = [
        *(["Close to a threshold: " + "; ".join(item.what for item in close)] if close else []),
        *(["Speaks against it: " + "; ".join(item.what for item in against)] if against else []),
        *(["Evidence is missing"] if missing else []),
    ]
    level = LEVELS[min(len(doubts), len(LEVELS) - 1)]
    reason = ". ".join(doubts) or "All evidence agrees, and is clear of its thresholds"
    return Check(
        signature,
        branches,
        state,
        culprit,
        message,
        tuple(evidence),
        tuple(missing),
        level,
        f"{reason}.",
        tuple(remedies),
    )


def unknown(signature: Signature, branches: tuple[str, ...], message: str, missing: Sequence[str] = ()) -> Check:
    """A check that what is there does not decide."""
    return Check(signature, branches, "unknown", None, message, (), tuple(missing), "low", "Nothing to judge by.")
