"""How sparse and how concentrated a delta is: one definition of each measure, for δ in training and for δ on disk.

Every measure follows from sums or from counts of magnitudes, so whoever reads δ (`penalty/tally.py` on live parameters,
`inspection/tally.py` on files) only gathers these. Shapes: `m` rows, `n` columns, `r` rank, `K` magnitudes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Counts = NDArray[np.int64]
Doubles = NDArray[np.float64]

DECADES = np.arange(-12 * 8, 3 * 8 + 1) / 8
"""Edges of a histogram of |δ| as log₁₀: eighths of a decade from 10⁻¹² to 10³."""
OCTAVES = np.log10(np.append(np.ldexp([[1.0, 1.5]], np.arange(-40, 128)[:, None]), 2.0**128))
"""The same from 2⁻⁴⁰ to the end of fp32, two bins an octave: N < 400, because Weights & Biases takes 512."""


def hoyer(entries: int, l1: float, squares: float) -> float | None:
    """(√n − ‖δ‖₁/‖δ‖₂) / (√n − 1): 0 if all |δ| are equal, 1 if one entry is all; None if δ = 0, not finite or one entry.

    Source: Hoyer 2004, "Non-negative matrix factorization with sparseness constraints". `entries` is n, `squares` ‖δ‖₂².
    """
    if not 0 < squares < math.inf or entries < 2:
        return None
    root = math.sqrt(entries)
    return (root - l1 / math.sqrt(squares)) / (root - 1)


def effective_rank(left: Tensor, right: Tensor) -> float:
    """(Σσ²)² / Σσ⁴ of left · right, ``[m, r]`` and ``[r, n]``, between 1 and its rank; 0 if it is 0, NaN if it is not finite.

    The participation ratio of the squared singular values; R₀ of Bartlett et al. (arXiv 1906.11300) with λ = σ². From the
    factors' Gram matrices in fp64: Σσ² and Σσ⁴ are traces of an r × r matrix and of its square, so nothing is decomposed.
    """
    left, right = left.double(), right.double()
    gram = ((left.T @ left) @ (right @ right.T)).cpu()  # its eigenvalues are σ²
    squares, fourth = float(gram.trace()), float((gram * gram.T).sum())
    if not (math.isfinite(squares) and math.isfinite(fourth)):
        return math.nan
    return squares**2 / fourth if fourth > 0 else 0.0


@dataclass(frozen=True)
class Histogram:
    """|δ| of one delta on a logarithmic scale. Entries beyond either end are counted apart, exact zeros too."""

    log10_edges: tuple[float, ...]
    """Ascending; bin i holds 10^edges[i] ≤ |δ| < 10^edges[i + 1], as far as the counts that it is made of tell them apart."""
    counts: tuple[int, ...] = ()
    """One fewer than edges."""
    zeros: int = 0
    underflow: int = 0
    """0 < |δ| < the lowest edge."""
    overflow: int = 0


@dataclass(frozen=True)
class Magnitudes:
    """How many entries there are of each |δ|, as finely as they were told apart while they were counted."""

    counts: Counts
    """``(K or more,)``; those without a size are infinite or no number."""
    sizes: Doubles
    """``(K,)`` ascending, the first of them that of exact zeros."""

    def gini(self) -> float | None:
        """Gini coefficient: 0 if all |δ| are equal, 1 − 1/n if one entry is all; None if δ = 0 or not finite."""
        mass = self._mass()
        if mass is None:
            return None
        counts = self.counts[: len(self.sizes)]
        total, entries = mass.sum(), counts.sum()
        # Equal magnitudes share the mean of their ranks.
        ranks = np.cumsum(counts) - (counts - 1) / 2
        return float(2 * (ranks * mass).sum() / (entries * total) - (entries + 1) / entries)

    def top_share(self, share: float) -> float | None:
        """The part of ‖δ‖₁ that the largest `share` of the entries (at least one) holds; None if δ = 0 or not finite."""
        mass = self._mass()
        if mass is None:
            return None
        counts, sizes = self.counts[: len(self.sizes)][::-1], self.sizes[::-1]
        most = max(1, int(share * counts.sum()))
        before = np.cumsum(counts) - counts
        taken = np.clip(most - before, 0, counts)
        return float((taken * sizes).sum() / mass.sum())

    def histogram(self, log10_edges: Doubles, zeros: int) -> Histogram:
        """The counts between `log10_edges`, ``(N + 1,)``; what is not finite is in none.

        `zeros` are the entries that are exactly zero, which are among those of the first size.
        """
        counts = self.counts[: len(self.sizes)]
        places = np.searchsorted(log10_edges, np.log10(self.sizes[1:]), side="right")
        bins = np.bincount(places, weights=counts[1:], minlength=len(log10_edges) + 1)
        below, *within, above = bins.astype(int).tolist()
        underflow = below + int(counts[0]) - zeros
        return Histogram(tuple(log10_edges.tolist()), tuple(within), zeros, underflow, overflow=above)

    @property
    def is_finite(self) -> bool:
        """Whether every entry has a size."""
        return not self.counts[len(self.sizes) :].any()

    def _mass(self) -> Doubles | None:
        """Σ|δ| of the entries of each size; None if there is none, or no telling."""
        mass: Doubles = self.counts[: len(self.sizes)] * self.sizes
        return mass if self.is_finite and mass.any() else None
