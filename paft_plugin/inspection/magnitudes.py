"""What the order of magnitudes tells (Gini, shares of the greatest, quantiles), from a histogram instead of a sort.

The histogram counts |δ| rounded to bfloat16. So each magnitude is known within a relative 2⁻⁹, and exactly where it is a
bfloat16 number already, as most differences of two bfloat16 weights are. A share of mass is off by at most a relative 2⁻⁸, the
Gini coefficient by at most 2⁻⁸; in practice rounding errors cancel far below that. Below 2⁻¹²⁶ (subnormal numbers) the steps
are 2⁻¹³³.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from paft_plugin.inspection.kernels import FINE, Counts
from paft_plugin.inspection.measures import Histogram

# Eighths of a decade from 10⁻¹² to 10³.
LOG10_EDGES = tuple(index / 8 for index in range(-12 * 8, 3 * 8 + 1))

FINITE = 0x7F80
"""Keys above are those of infinity and NaN."""
VALUES: NDArray[np.float64] = (np.arange(FINITE, dtype=np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
"""The magnitude that each key stands for, ascending."""


def gini(counts: Counts) -> float | None:
    """Gini coefficient of the magnitudes; None if all are zero."""
    counts = counts[:FINITE]
    mass = counts * VALUES
    total, entries = mass.sum(), counts.sum()
    if not total:
        return None
    # Equal magnitudes share the mean of their ranks.
    ranks = np.cumsum(counts) - (counts - 1) / 2
    return float(2 * (ranks * mass).sum() / (entries * total) - (entries + 1) / entries)


def top_share(counts: Counts, share: float) -> float | None:
    """Share of ‖δ‖₁ in the ``share`` of entries of greatest magnitude (at least one entry); None if all are zero."""
    counts, values = counts[:FINITE][::-1], VALUES[::-1]
    mass = counts * values
    if not mass.sum():
        return None
    most = max(1, int(share * counts.sum()))
    before = np.cumsum(counts) - counts
    taken = np.clip(most - before, 0, counts)
    return float((taken * values).sum() / mass.sum())


def log_histogram(counts: Counts, zeros: int) -> Histogram:
    """The keys' counts in bins of an eighth of a decade.

    Args:
        counts: per key.
        zeros: entries that are exactly zero; they are among those of key 0.
    """
    counts = counts[:FINITE].copy()
    tiny = int(counts[0]) - zeros
    places = np.searchsorted(np.asarray(LOG10_EDGES), np.log10(VALUES[1:]), side="right")
    binned = np.bincount(places, weights=counts[1:], minlength=len(LOG10_EDGES) + 1).astype(np.int64)
    return Histogram(
        LOG10_EDGES,
        tuple(int(count) for count in binned[1:-1]),
        zeros=zeros,
        underflow=int(binned[0]) + tiny,
        overflow=int(binned[-1]),
    )


def key_of_greatest(counts: Counts, k: int) -> tuple[int, int]:
    """The key of the k-th greatest magnitude, and the entries with a greater key."""
    from_above = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_above, k))
    return len(counts) - 1 - place, int(from_above[place] - counts[::-1][place])


def edge_within(key: int, fine: NDArray[np.uint32], k: int) -> tuple[float, float]:
    """The k-th greatest magnitude within a key, and the share of the entries equal to it that are among those k.

    Args:
        key: the key.
        fine: entries of each fp32 magnitude within it, ``(FINE,)``.
        k: at least 1, at most all of them.
    """
    place, above = key_of_greatest(fine.astype(np.int64), k)
    bits = np.uint32((key << 16) + place - FINE // 2)
    return float(bits.view(np.float32)), (k - above) / int(fine[place])
