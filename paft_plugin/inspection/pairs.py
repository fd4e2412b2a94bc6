"""How two deltas interfere, and what TIES and DARE would make of them, entry by entry.

As mergekit does it: each tensor is trimmed by itself to the ``int(density · n)`` entries of greatest magnitude of all its n,
zeros included, at least one; then the sign of the branches' sum is elected, and of a sum of zero the positive one. Branches have
equal weights here. Where magnitudes at the edge of a trim are equal, mergekit keeps those that its sort puts first; here each
is kept with the same chance, so counts are expected values. DARE keeps each entry with chance `density` and then rescales, by
nearly the same factor in each branch: its outcome is expected from the untrimmed one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from paft_plugin.deltas.delta import Delta
from paft_plugin.formats import threshold_key
from paft_plugin.inspection import kernels
from paft_plugin.inspection.kernels import FINE, KEYS, LANES, Counts, Doubles, Floats
from paft_plugin.inspection.measures import Election, Interference, Overlap, Subspaces
from paft_plugin.inspection.stream import blocks
from paft_plugin.inspection.tally import StoredTally, edge_within, key_of_greatest

SAMPLE, PLACES = 1 << 17, 16
"""Entries from which edges are guessed, and the places of a tensor that they are taken from."""
SIDE = 1 << 10
"""Rows and columns of a product of factors from which its edges are guessed: such entries cost little."""
DOUBT = 0.005
"""How far the share of entries above a magnitude may be off in a sample, over the deviation of one entry."""
MOST_KEYS = 48
"""Looked into of one tensor, a quarter of them for one edge; more would take more memory than another read takes time."""


@dataclass(frozen=True)
class Trim:
    """What of one tensor survives trimming, at each of D densities."""

    edges: Floats
    """(D,) magnitudes above these are kept; of those equal to them, a share."""
    shares: Floats
    """(D,)"""
    nonzero: int
    kept: Doubles
    """(D,) entries ≠ 0."""


def find_trim(
    delta: Delta, name: str, tally: StoredTally, densities: Sequence[float], within: Mapping[int, NDArray[np.uint32]]
) -> Trim:
    """Where the trims of one tensor cut; reads it again if any cuts within a key that was not looked into.

    `within`: key → entries of each fp32 magnitude, for the keys that were looked into.
    """
    nonzero = tally.entries - tally.zeros
    edges, shares = np.zeros(len(densities), np.float32), np.zeros(len(densities), np.float32)
    most = [max(1, int(density * tally.entries)) for density in densities]
    # With fewer entries ≠ 0 than may stay, all of them stay: above an edge of 0.
    cuts = [index for index, k in enumerate(most) if k < nonzero]
    found = {index: key_of_greatest(tally.keys, most[index]) for index in cuts}
    fine = {**within, **_count_within(delta, name, {key for key, _ in found.values()} - within.keys())}
    for index, (key, above) in found.items():
        edges[index], shares[index] = edge_within(key, fine[key], most[index] - above)
    return Trim(edges, shares, nonzero, np.minimum(most, nonzero).astype(np.float64))


def likely_edges(delta: Delta, name: str, densities: Sequence[float]) -> set[int]:
    """The keys at which trims probably cut, from a sample of one tensor: looked into while counting, they save another read."""
    sample = np.zeros((LANES, KEYS), np.uint32)
    for some in _sampled(delta, name):
        kernels.count_keys(kernels.bits_of(some.contiguous().numpy()), sample)
    counts = sample.sum(axis=0, dtype=np.int64)
    entries, keys = int(counts.sum()), set[int]()
    if not entries:
        return keys
    # At density 1 nothing is cut.
    for density in (each for each in densities if each < 1):
        spread = DOUBT * math.sqrt(density * (1 - density)) * entries
        ranks = (density * entries - spread, density * entries + spread)
        low, high = (key_of_greatest(counts, int(min(max(rank, 1), entries)))[0] for rank in ranks[::-1])
        keys.update(range(low, high + 1) if high - low < MOST_KEYS // 4 else ())
    # All zeros are one magnitude: nothing to look into.
    return set(sorted(keys - {0})[:MOST_KEYS])


def _sampled(delta: Delta, name: str) -> Iterator[Tensor]:
    """About `SAMPLE` entries of one tensor: a grid of a product's entries, rows of any other's."""
    shape = delta.base.shape(name)
    height, width = (shape[0], math.prod(shape[1:])) if shape else (1, 1)
    if not height * width or len(shape) > 2:
        # A slice of fused experts is a whole matrix: as many as would do are another read.
        return
    if factors := delta.factors(name):
        # Whole rows would tell little: a product of low rank has rows, and columns, of very different norms.
        yield factors[0][:: -(-height // SIDE)] @ factors[1][:, :: -(-width // SIDE)]
        return
    rows, read = max(1, SAMPLE // (PLACES * width)), delta.rows(name)
    for start in range(0, height, max(rows, height // PLACES)):
        yield read(start, min(start + rows, height))


def _count_within(delta: Delta, name: str, keys: set[int]) -> dict[int, NDArray[np.uint32]]:
    """Key → entries of each fp32 magnitude within it."""
    if not keys:
        return {}
    ordered = sorted(keys)
    slots = np.zeros(KEYS, np.uint32)
    slots[ordered] = np.arange(1, len(ordered) + 1)
    fine = np.zeros((len(ordered) + 1) * FINE, np.uint32)
    for (change,) in blocks(delta.base.shape(name), lambda: delta.rows(name)):
        kernels.count_within(kernels.bits_of(change.numpy()), slots, fine)
    return dict(zip(ordered, fine.reshape(-1, FINE)[1:], strict=True))


@dataclass
class PairTally:
    """Sums over the entries of two deltas, which add up over tensors."""

    thresholds: tuple[float, ...]
    densities: tuple[float, ...]
    entries: int = 0
    overlap: Counts = field(init=False)
    """(1 + T, 4): |A|, |B|, |A ∩ B|, of these in conflict; at 0 and each threshold."""
    products: Doubles = field(default_factory=lambda: np.zeros(4))
    """Σ|δ₁δ₂| agreeing and opposing, Σδ₁², Σδ₂²."""
    l1: Doubles = field(default_factory=lambda: np.zeros(2))
    nonzero: Counts = field(default_factory=lambda: np.zeros(2, np.int64))
    kept: Doubles = field(init=False)
    """(D, 2)"""
    outcome: Doubles = field(init=False)
    """(D, 6): kept in both, of these in conflict, of these lost by the first and by the second, elected Σ|δ| of either."""

    def __post_init__(self) -> None:
        self.overlap = np.zeros((1 + len(self.thresholds), 4), np.int64)
        self.kept = np.zeros((len(self.densities), 2))
        self.outcome = np.zeros((len(self.densities), 6))

    def add(self, other: PairTally) -> None:
        """Take in what another tally counted."""
        self.entries += other.entries
        for name in ("overlap", "products", "l1", "nonzero", "kept", "outcome"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def compare(self, one: Floats, other: Floats) -> None:
        """Take in a block of both deltas, ``(R, C)`` each: all but the elections."""
        self.entries += one.size
        limits = np.asarray([0.0, *self.thresholds], np.float32)
        kernels.compare(one.reshape(-1), other.reshape(-1), limits, self.products, self.overlap)

    def trim(self, tallies: tuple[StoredTally, StoredTally], trims: tuple[Trim, Trim]) -> None:
        """Set what follows from the two deltas' own sums over this one tensor."""
        self.l1[:] = [tally.l1 for tally in tallies]
        self.nonzero[:] = [trim.nonzero for trim in trims]
        self.kept[:] = np.stack([trim.kept for trim in trims], axis=1)

    def elect(self, one: Floats, other: Floats, trims: tuple[Trim, Trim]) -> None:
        """Take in the elections over a block of both deltas."""
        edges = np.stack([trim.edges for trim in trims], axis=1)
        shares = np.stack([trim.shares for trim in trims], axis=1)
        kernels.elect(one.reshape(-1), other.reshape(-1), edges, shares, self.outcome)

    def interference(self, subspaces: Subspaces | None = None) -> Interference:
        """What the sums come to."""
        elections = map(self._election, self.kept, self.outcome)
        ties = dict(zip(self.densities, elections, strict=True))
        keys = [threshold_key(each) for each in (0.0, *self.thresholds)]
        return Interference(
            entries=self.entries,
            overlap={key: Overlap(*map(int, row)) for key, row in zip(keys, self.overlap, strict=True)},
            agreeing=float(self.products[0]),
            opposing=float(self.products[1]),
            squares=(float(self.products[2]), float(self.products[3])),
            ties={threshold_key(density): election for density, election in ties.items()},
            dare=expected_by_dare(ties[1.0], self.l1, self.densities),
            subspaces=subspaces,
            l1=(float(self.l1[0]), float(self.l1[1])),
        )

    def _election(self, kept: Doubles, outcome: Doubles) -> Election:
        both, conflicts, lost_first, lost_second, *mass = map(float, outcome)
        first, second = map(int, self.nonzero)
        survived = (float(kept[0]), float(kept[1]))
        return Election((first, second), survived, both, conflicts, (lost_first, lost_second), (mass[0], mass[1]))


def expected_by_dare(untrimmed: Election, l1: Doubles, densities: Sequence[float]) -> Mapping[str, Election]:
    """Density → the outcome to be expected if each entry of each branch survives with that chance, on its own.

    From the outcome at density 1 and from `l1`, ‖δ₁‖₁ and ‖δ₂‖₁.
    """
    first, second = untrimmed.nonzero
    assert untrimmed.mass is not None
    overruled = [whole - mass for whole, mass in zip(map(float, l1), untrimmed.mass, strict=True)]
    return {
        threshold_key(p): Election(
            untrimmed.nonzero,
            (p * first, p * second),
            p * p * untrimmed.both,
            p * p * untrimmed.conflicts,
            (p * p * untrimmed.lost[0], p * p * untrimmed.lost[1]),
            (p * float(l1[0]) - p * p * overruled[0], p * float(l1[1]) - p * p * overruled[1]),
        )
        for p in densities
    }
