"""How dense a delta is, whatever its scale."""

from __future__ import annotations

from paft_plugin.inspection.measures import Measures


def density(measures: Measures) -> float:
    """Share of entries that a delta of equal magnitudes with the same norms would have: (‖δ‖₁/‖δ‖₂)² / n.

    1 if all |δ| are equal, 0.64 for a normal distribution, 1/n for a single entry. No factor on the delta changes it, so a delta
    that is merely small is not sparse.
    """
    return (measures.l1 / measures.l2) ** 2 / measures.entries
