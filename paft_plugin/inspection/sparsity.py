"""How sparse any tensors are, without their base: the share of entries with |δ| ≤ threshold, for thresholds that are named.

The count is that of a whole inspection (`inspect_deltas`), of which this is a small part.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from paft_plugin.errors import PaftError
from paft_plugin.inspection import kernels
from paft_plugin.inspection.kernels import BLOCK
from paft_plugin.thresholds import threshold_key


@dataclass(frozen=True)
class Sparsity:
    """Measures of one delta, over all entries of the tensors that its branch can change."""

    entries: int
    """Entries counted."""
    shares: dict[str, float]
    """Threshold, as `threshold_key` writes it → share of entries with |δ| ≤ threshold, in [0, 1]."""
    l1_norm: float
    l2_norm: float

    def as_json(self) -> dict[str, Any]:
        """Plain numbers and strings, for a JSON file."""
        return asdict(self)


def sparsity(
    tensors: Iterable[tuple[str, Tensor]],  # name, δ of any shape
    thresholds: Sequence[float],
) -> Sparsity:
    """Measure a delta in fp32, one block of a tensor at a time, with fp64 sums.

    Raises:
        PaftError: No entries at all, a threshold that is negative or no number, an entry that is NaN or infinite.
    """
    if bad := [threshold for threshold in thresholds if not (math.isfinite(threshold) and threshold >= 0)]:
        raise PaftError(f"sparsity threshold {bad[0]}: not a number ≥ 0. Give one like 1e-5.")
    limits = np.asarray(thresholds, np.float32)
    small, square = np.zeros(len(thresholds), np.int64), np.zeros(1)
    entries, l1, squares = 0, 0.0, 0.0
    for name, delta in tensors:
        for block in delta.detach().flatten().split(BLOCK):
            l1 += kernels.tally(block.float().cpu().numpy()[None], limits, small, square)
            squares += float(square[0])
        entries += delta.numel()
        if not math.isfinite(l1):
            raise PaftError(
                f"{name}: its delta holds NaN or infinity: training diverged. Retrain with a lower learning rate."
            )
    if not entries:
        raise PaftError("No entries to measure: the delta has no tensors. Check that the branch was trained.")
    shares = {
        threshold_key(threshold): int(count) / entries for threshold, count in zip(thresholds, small, strict=True)
    }
    return Sparsity(entries, shares, l1, math.sqrt(squares))
