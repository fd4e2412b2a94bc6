"""The election of signs among all deltas at once, as TIES holds it when it fuses more than two.

Trims, equal weights and ties are those of `pairs.py`. A side that is overruled lost *to one* if a single entry of the other side
would have won against all of it, and *to several* if only a coalition could: with two branches every loss is to one. Of equal
magnitudes at the edge of a trim each draws a lot: an expected value, as of pairs, would take 2ᵏ elections where k are at theirs.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from paft_plugin.evaluation.arms import arm_named
from paft_plugin.formats import threshold_key
from paft_plugin.inspection import kernels
from paft_plugin.inspection.kernels import Counts, Doubles, Floats
from paft_plugin.inspection.measures import Elections, Vote
from paft_plugin.inspection.pairs import Trim

FEWEST = 3
"""Deltas of which an election among all is another one than that of a pair."""


def electors(names: Collection[str], fused: Collection[str] = ()) -> tuple[str, ...]:
    """The deltas that elect signs together: those that are said to be `fused`, else all but dense twins; none of a mere pair."""
    twins = {arm_named(name).twin for name in names}
    found = tuple(name for name in names if (name in fused if fused else name not in twins))
    return found if len(found) >= FEWEST else ()


@dataclass
class ElectionTally:
    """Sums over the entries of all deltas together, which add up over tensors."""

    names: tuple[str, ...]
    """Of the deltas, in the order in which they are counted."""
    densities: tuple[float, ...]
    entries: int = 0
    nonzero: Counts = field(init=False)
    """(B,)"""
    outcome: Doubles = field(init=False)
    """(D, B, 4): entries that won, lost to one, lost to several, and Σ|δ| of those that won."""

    def __post_init__(self) -> None:
        shape = (len(self.densities), len(self.names))
        self.nonzero = np.zeros(shape[1], np.int64)
        self.outcome = np.zeros((*shape, 4))

    def add(self, other: ElectionTally) -> None:
        """Take in what another tally counted."""
        for name in ("entries", "nonzero", "outcome"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def elect(self, changes: Mapping[str, Floats], trims: Mapping[str, Trim]) -> None:
        """Take in the next block of those deltas that change the tensor, all of them in the same order."""
        if not changes:
            return
        block = np.stack([change.reshape(-1) for change in changes.values()])
        edges = np.stack([trims[name].edges for name in changes], axis=1)
        shares = np.stack([trims[name].shares for name in changes], axis=1)
        seeds = np.array([zlib.crc32(name.encode()) for name in changes], np.uint32)
        outcome = np.zeros((len(self.densities), len(changes), 4))
        kernels.elect_all(block, edges, shares, seeds, self.entries, outcome)
        self.entries += block.shape[1]
        places = [self.names.index(name) for name in changes]
        self.nonzero[places] += np.count_nonzero(block, axis=1)
        self.outcome[:, places] += outcome

    def elections(self) -> Elections:
        """What the sums come to."""
        votes = {
            threshold_key(density): {
                name: Vote(int(nonzero), int(row[0]), int(row[1]), int(row[2]), float(row[3]))
                for name, nonzero, row in zip(self.names, self.nonzero, outcome, strict=True)
            }
            for density, outcome in zip(self.densities, self.outcome, strict=True)
        }
        return Elections(self.entries, votes)
