"""Sums over one delta's entries, which add up over blocks and tensors, and the measures that follow from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from paft_plugin.deltas import Delta
from paft_plugin.deltas.store import FLOATS
from paft_plugin.inspection import kernels
from paft_plugin.inspection.kernels import KEYS, LANES, Counts, Doubles
from paft_plugin.inspection.magnitudes import gini, top_share
from paft_plugin.inspection.measures import Measures, Rank
from paft_plugin.inspection.stream import blocks
from paft_plugin.thresholds import threshold_key


@dataclass
class Tally:
    """Over one tensor or many."""

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

    def add(self, other: Tally) -> None:
        """Take in what another tally counted."""
        self.entries += other.entries
        self.zeros += other.zeros
        self.small = self.small + other.small if len(self.small) else other.small.copy()
        self.unseen = {
            dtype: self.unseen.get(dtype, 0) + other.unseen.get(dtype, 0) for dtype in {**self.unseen, **other.unseen}
        }
        self.l1 += other.l1
        self.squares += other.squares
        self.largest = max(self.largest, other.largest)
        self.base_squares += other.base_squares
        self.keys += other.keys

    @property
    def is_finite(self) -> bool:
        """Whether no entry is NaN or infinite."""
        return math.isfinite(self.largest) and not math.isnan(self.l1)

    def measures(self, rank: Rank | None = None) -> Measures:
        """What the sums come to."""
        l2 = math.sqrt(self.squares)
        return Measures(
            entries=self.entries,
            zeros=self.zeros,
            small={threshold_key(each): int(count) for each, count in zip(self.thresholds, self.small, strict=True)},
            unseen=self.unseen,
            l1=self.l1,
            l2=l2,
            largest=self.largest,
            base_l2=math.sqrt(self.base_squares),
            hoyer=_hoyer(self.entries, self.l1, l2),
            gini=gini(self.keys),
            top_1_percent=top_share(self.keys, 0.01),
            top_10_percent=top_share(self.keys, 0.1),
            effective_rank=rank,
        )


def _hoyer(entries: int, l1: float, l2: float) -> float | None:
    if not l2 or entries < 2:
        return None
    root = math.sqrt(entries)
    return (root - l1 / l2) / (root - 1)


def tally_tensor(delta: Delta, name: str, thresholds: Sequence[float]) -> tuple[Tally, Doubles]:
    """Count one tensor of a delta, and its base's; also Σδ² of each row of its last dimension (of all, for a vector)."""
    limits = np.asarray([0.0, *thresholds], np.float32)
    small = np.zeros(len(limits), np.int64)
    keys = np.zeros((LANES, KEYS), np.uint32)
    tally = Tally(tuple(thresholds), unseen=dict.fromkeys(rounded_to(delta.base.dtype(name)), 0))
    squares = []
    largest = 0
    for base, change in blocks(delta.base.shape(name), lambda: delta.base_rows(name), lambda: delta.rows(name)):
        block, before = change.numpy(), base.float()
        bits = kernels.bits_of(block)
        squares.append(np.empty(block.shape[0]))
        tally.l1 += kernels.tally(block, limits, small, squares[-1])
        largest = max(largest, int(kernels.largest(bits)))
        kernels.count_keys(bits, keys)
        tally.base_squares += kernels.squared(before.numpy().reshape(-1))
        for dtype, count in HIDDEN.items():
            if dtype in tally.unseen:
                tally.unseen[dtype] += count(before, change)
    by_row = np.concatenate(squares)
    tally.entries = math.prod(delta.base.shape(name))
    tally.zeros, tally.small = int(small[0]), small[1:]
    tally.squares = float(by_row.sum())
    tally.largest = float(np.uint32(largest).view(np.float32))
    tally.keys = keys.sum(axis=0, dtype=np.int64)
    return tally, by_row


def rounded_to(dtype: str) -> tuple[str, ...]:
    """The dtypes in which a change may be lost, given the base's as safetensors calls it."""
    # A base in fp64 is read as fp32, as deltas are.
    own = "float32" if dtype == "F64" else FLOATS[dtype]
    return (own, "bfloat16") if own == "float32" else (own,)


def _hidden_by(dtype: torch.dtype) -> Callable[[Tensor, Tensor], int]:
    def count(before: Tensor, change: Tensor) -> int:
        return int(torch.count_nonzero((before + change).to(dtype) == before.to(dtype)))

    return count


def _hidden_by_bfloat16(before: Tensor, change: Tensor) -> int:
    moved = before + change
    return int(kernels.hidden_by_bfloat16(kernels.bits_of(before.numpy()), kernels.bits_of(moved.numpy())))


HIDDEN: Mapping[str, Callable[[Tensor, Tensor], int]] = {
    "bfloat16": _hidden_by_bfloat16,
    **{name: _hidden_by(getattr(torch, name)) for name in ("float16", "float32")},
}
"""Dtype → the entries of (θ_pre, δ), both in fp32, that it hides."""
