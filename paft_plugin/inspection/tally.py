"""Sums over a stored delta's entries, which add up over blocks and tensors, and the measures that follow from them."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from paft_plugin.deltas.delta import Delta
from paft_plugin.deltas.measures import Magnitudes, hoyer
from paft_plugin.deltas.store import FLOATS
from paft_plugin.formats import threshold_key
from paft_plugin.inspection import kernels
from paft_plugin.inspection.kernels import FINE, KEYS, LANES, Counts, Doubles, Floats
from paft_plugin.inspection.measures import Measures, Rank

FINITE = 0x7F80
"""Keys above are those of infinity and NaN."""
SIZES: Doubles = (np.arange(FINITE, dtype=np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
"""The magnitude that each key stands for, ascending."""


def key_of_greatest(counts: Counts, k: int) -> tuple[int, int]:
    """The key of the k-th greatest magnitude, and the entries with a greater key."""
    from_above = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_above, k))
    return len(counts) - 1 - place, int(from_above[place] - counts[::-1][place])


def edge_within(key: int, fine: NDArray[np.uint32], k: int) -> tuple[float, float]:
    """The k-th greatest magnitude within a key, and the share of the entries equal to it that are among those k.

    `fine` are the entries of each fp32 magnitude within the key, ``(FINE,)``; k is at least 1, at most all of them.
    """
    place, above = key_of_greatest(fine.astype(np.int64), k)
    bits = np.uint32((key << 16) + place - FINE // 2)
    return float(bits.view(np.float32)), (k - above) / int(fine[place])


@dataclass
class StoredTally:
    """Sums over the entries of one tensor of a delta, or of many."""

    thresholds: tuple[float, ...]
    entries: int = 0
    zeros: int = 0
    small: Counts = field(default_factory=lambda: np.zeros(0, np.int64))
    """(T,) entries with |δ| ≤ threshold."""
    unseen: dict[str, int] = field(default_factory=dict)
    l1: float = 0.0
    squares: float = 0.0
    largest: float = 0.0
    base_squares: float = 0.0
    keys: Counts = field(default_factory=lambda: np.zeros(KEYS, np.int64))
    """(K,) entries by magnitude."""

    @property
    def magnitudes(self) -> Magnitudes:
        """Each entry is taken for its key, 0.4 % of it at most."""
        return Magnitudes(self.keys, SIZES)

    def add(self, other: StoredTally) -> None:
        """Take in what another tally counted."""
        for name in ("entries", "zeros", "l1", "squares", "base_squares"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.small = self.small + other.small if len(self.small) else other.small.copy()
        for dtype, count in other.unseen.items():
            self.unseen[dtype] = self.unseen.get(dtype, 0) + count
        self.largest = max(self.largest, other.largest)
        self.keys += other.keys

    @property
    def is_finite(self) -> bool:
        """Whether no entry is NaN or infinite."""
        return math.isfinite(self.largest) and not math.isnan(self.l1)

    def measures(self, rank: Rank | None = None) -> Measures:
        """The measures that follow from the sums."""
        sizes = self.magnitudes
        return Measures(
            entries=self.entries,
            zeros=self.zeros,
            small={threshold_key(each): int(count) for each, count in zip(self.thresholds, self.small, strict=True)},
            unseen=self.unseen,
            l1=self.l1,
            l2=math.sqrt(self.squares),
            largest=self.largest,
            base_l2=math.sqrt(self.base_squares),
            hoyer=hoyer(self.entries, self.l1, self.squares),
            gini=sizes.gini(),
            top_1_percent=sizes.top_share(0.01),
            top_10_percent=sizes.top_share(0.1),
            effective_rank=rank,
        )


class Counting:
    """Takes in one tensor of a delta block by block, with the base's beside it, and sums up.

    Within the keys that are to be looked into, each fp32 magnitude is counted (`within`).
    """

    def __init__(self, delta: Delta, name: str, thresholds: Sequence[float], looked_into: Collection[int] = ()) -> None:
        self._tally = StoredTally(tuple(thresholds), entries=math.prod(delta.base.shape(name)))
        self._tally.unseen = dict.fromkeys(rounded_to(delta.base.dtype(name)), 0)
        self._limits = np.asarray([0.0, *thresholds], np.float32)
        self._small = np.zeros(len(self._limits), np.int64)
        self._keys = np.zeros((LANES, KEYS), np.uint32)
        self._looked_into = sorted(looked_into)
        self._slots = np.zeros(KEYS, np.uint8)
        self._slots[self._looked_into] = np.arange(1, len(self._looked_into) + 1)
        self._fine = np.zeros(len(self._looked_into) * FINE, np.uint32)
        self._squares: list[Doubles] = []
        self._largest = 0

    def take(self, before: Floats, change: Floats, base_squares: float) -> None:
        """The next block: θ_pre and δ, ``(R, C)``, and Σθ_pre²."""
        squares = np.empty(change.shape[0])
        l1, largest, hidden = kernels.measure(
            before, change, self._limits, self._small, squares, self._keys, self._slots, self._fine
        )
        self._squares.append(squares)
        self._tally.l1 += l1
        self._tally.base_squares += base_squares
        self._largest = max(self._largest, int(largest))
        for dtype in self._tally.unseen:
            self._tally.unseen[dtype] += int(hidden) if dtype == "bfloat16" else _hidden_by(dtype, before, change)

    @property
    def by_row(self) -> Doubles:
        """Σδ² of each row of its last dimension (of all, for a vector)."""
        return np.concatenate(self._squares) if self._squares else np.zeros(0)

    @property
    def within(self) -> dict[int, NDArray[np.uint32]]:
        """Key that was looked into → entries of each fp32 magnitude, ``(FINE,)``."""
        fine = self._fine.reshape(-1, FINE)
        # Those that are the key itself were left out.
        fine[:, FINE // 2] = 0
        fine[:, FINE // 2] = self._keys[:, self._looked_into].sum(axis=0) - fine.sum(axis=1)
        return dict(zip(self._looked_into, fine, strict=True))

    def finished(self) -> StoredTally:
        """The sums, once every block was taken in."""
        self._tally.zeros, self._tally.small = int(self._small[0]), self._small[1:]
        self._tally.squares = float(self.by_row.sum())
        self._tally.largest = float(np.uint32(self._largest).view(np.float32))
        self._tally.keys = self._keys.sum(axis=0, dtype=np.int64)
        return self._tally


def rounded_to(dtype: str) -> tuple[str, ...]:
    """The dtypes in which a change may be lost, given the base's as safetensors calls it."""
    # A base in fp64 is read as fp32, as deltas are.
    own = "float32" if dtype == "F64" else FLOATS[dtype]
    return (own,) if own == "bfloat16" else (own, "bfloat16")


def _hidden_by(dtype: str, before: Floats, change: Floats) -> int:
    """Entries that rounding to another dtype than bfloat16 hides."""
    kept, rounded = torch.from_numpy(before), getattr(torch, dtype)
    return int(torch.count_nonzero((kept + torch.from_numpy(change)).to(rounded) == kept.to(rounded)))
