"""How much of one delta survives TIES' election of signs against another, from what an inspection keeps of both.

In an entry where the signs are opposite, the greater magnitude takes all. So a branch loses the mass (Σ|δ|) of its entries where
the other one is greater and disagrees:

    survival = 1 − c · Σᵢ mᵢ · P(|δ_other| > |δᵢ|)

with mᵢ the share of the branch's mass in bin i of its histogram, the probability from the other's histogram, and c the share of
conflicts, weighted by magnitude, from the inspection of the pair. That takes both histograms as independent of each other: on
trained branches it was within 0.04 of an entry-by-entry count (`DIAGNOSIS.md`). Two strangers conflict in half of their entries,
so one that is overpowered everywhere keeps 0.5, equals keep 0.85, and a sparse delta of few but great entries nearly all, however
small its norm is.
"""

from __future__ import annotations

from collections.abc import Iterator

from paft_plugin.inspection.measures import Histogram


def survival(
    own: Histogram,
    other: Histogram,
    conflict: float,  # share of Σ|δ₁δ₂| in entries of opposite signs
    contested: float = 1.0,  # share of the branch's entries that the other branch can change too
    weight: float = 1.0,  # of the branch, in units of the other's
) -> float | None:
    """Share of a branch's mass that takes part in the merged delta, without trimming; None for a delta of zeros."""
    opponents = sorted(_bins(other))
    total = other.zeros + sum(count for _, count in opponents)
    mass = lost = 0.0
    for size, count in _bins(own, weight):
        greater = sum(n * (0.5 if there == size else 1.0) for there, n in opponents if there >= size)
        mass += count * size
        lost += count * size * greater / total
    return 1.0 - conflict * contested * lost / mass if mass else None


def _bins(histogram: Histogram, weight: float = 1.0) -> Iterator[tuple[float, int]]:
    """(geometric middle × weight, count) of what is not zero; what lies beyond the ends is taken to lie at them."""
    edges = histogram.log10_edges
    for low, high, count in zip(edges, edges[1:], histogram.counts, strict=False):
        if count:
            yield weight * 10.0 ** ((low + high) / 2), count
    if histogram.underflow:
        yield weight * 10.0 ** edges[0], histogram.underflow
    if histogram.overflow:
        yield weight * 10.0 ** edges[-1], histogram.overflow
