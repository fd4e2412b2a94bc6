"""The merge methods that a recipe can name: what each takes, and its defaults for the two deltas of PAFT.

The defaults are this project's own choices (the PAFT paper states neither densities nor merge weights), except where a
source is named.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """One of mergekit's merge methods."""

    name: str
    """As mergekit calls it."""
    title: str
    """As its paper calls it, with the paper."""
    weight: float
    """Default weight of each branch."""
    density: float | None = None
    """Default share of a delta's entries that is kept; None where nothing is trimmed or dropped."""
    density_reason: str = ""
    drops_at_random: bool = False
    """DARE: entries are dropped by chance and the rest is rescaled, so the seed matters."""
    on_deltas: bool = True
    """Whether it merges deltas onto a base model (with `normalize` and `lambda`), or averages whole models."""


_DARE_DENSITY = (
    "half is dropped by chance; the paper's 0.1 suits dense deltas: of a sparse one it leaves little, "
    "at ten times its size"
)

METHODS = {
    method.name: method
    for method in (
        Method(
            "ties",
            "TIES (arXiv 2306.01708)",
            weight=1.0,
            density=0.2,
            density_reason="the TIES paper's top 20 %, of all entries of a tensor: a sparser delta loses only its near-zero ones",
        ),
        Method(
            "dare_ties",
            "DARE with TIES' sign election (arXiv 2311.03099)",
            weight=1.0,
            density=0.5,
            density_reason=_DARE_DENSITY,
            drops_at_random=True,
        ),
        Method(
            "dare_linear",
            "DARE with a plain sum (arXiv 2311.03099)",
            weight=1.0,
            density=0.5,
            density_reason=_DARE_DENSITY,
            drops_at_random=True,
        ),
        Method("task_arithmetic", "Task Arithmetic (arXiv 2212.04089)", weight=1.0),
        Method("linear", "Linear (arXiv 2203.05482)", weight=0.5, on_deltas=False),
    )
}
