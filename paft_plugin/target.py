"""Whether a training with `paft_target_sparsity` ended where it was to end, from its `paft.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from paft_plugin.thresholds import threshold_key, threshold_label

ENOUGH_STEPS = 60
"""Optimizer steps with which the demo's SFT branch came from far to .9 ± .013; with 40 it ended at .74 (penalty/LOG.md)."""
TOLERANCE = 0.5
"""Log-odds: .85 to .94 around .9. What steering leaves is .14 at most (penalty/LOG.md); farther off, something went wrong."""
CERTAIN = 1e-6
"""Shares closer than this to 0 and 1 are as good as these."""


def too_few_steps(record: Mapping[str, Any], steps: int) -> str | None:
    """What to say of a training of so many optimizer steps before it begins; None if they suffice, or it has no target.

    Args:
        record: The content of `paft.json`, or what of it is settings.
        steps: All of the run.
    """
    if record.get("target_sparsity") is None or steps >= ENOUGH_STEPS:
        return None
    return (
        f"paft_target_sparsity: {steps} steps are few: it took {ENOUGH_STEPS} for λ to find itself and for the delta to shrink. "
        "Train on more rows, for more epochs, or with fewer rows a step, or set paft_l1_lambda alone."
    )


def missed_target(record: Mapping[str, Any]) -> str | None:
    """What to say of a finished training that ended far from its target; None if it had none, or met it.

    Args:
        record: The content of `paft.json`.
    """
    target, threshold, history = record.get("target_sparsity"), record.get("target_threshold"), record.get("history")
    if target is None or threshold is None or not record.get("finished") or not history:
        return None
    ended = (record.get("sparsity") or {}).get(threshold_key(threshold))
    if ended is None or abs(log_odds(ended, CERTAIN) - log_odds(target, CERTAIN)) <= TOLERANCE:
        return None
    step, strength = history[-1]["step"], history[-1]["lambda"]
    longer = (
        f"for {ENOUGH_STEPS} steps or more (more epochs, fewer rows a step)" if step < ENOUGH_STEPS else "for longer"
    )
    return (
        f"paft_target_sparsity: {target:g} was missed: {ended:.1%} of the delta's entries are at or under "
        f"{threshold_label(threshold)}. λ had come to {strength:.2g} by step {step}: train {longer}, and let it start there "
        f"(paft_l1_lambda: {strength:.1e})."
    )


def log_odds(share: float, certain: float) -> float:
    """ln(p / (1 − p)) of a share p in [0, 1], which counts as no closer to 0 and 1 than `certain`."""
    share = max(certain, min(1 - certain, share))
    return math.log(share / (1 - share))
