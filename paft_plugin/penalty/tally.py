"""What one pass over the entries of a live delta counts and sums, for the measures of `deltas/measures.py`.

Shape letters: `O` rows of δ, `I` columns, `R` rank, `K` thresholds. As in l1.py nothing of size O × I is held, and blocks are
summed in fp64. The histogram of |δ| holds exact counts in bins of equal width within each power of two, read off the bits of the
fp32 number: its exponent and the first bits of its mantissa.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from paft_plugin.deltas.measures import Magnitudes, effective_rank
from paft_plugin.penalty.l1 import Count, difference_blocks, ieee_products, memory_order, product_blocks, unscaled
from paft_plugin.penalty.live import ExpertsDelta, FactorsDelta, FullDelta, LiveDelta, LowRankDelta
from paft_plugin.penalty.sharded import largest_over_shards, local, sum_over_shards, whole

Measurable = LowRankDelta | ExpertsDelta | FullDelta

DROPPED_BITS = 19  # of an fp32's 31 without its sign: leaves the exponent's 8 and 4 of the mantissa
BINS = 1 << (31 - DROPPED_BITS)
"""Few enough for a GPU to keep their counters in its fast memory (48 KiB)."""
FINITE = 0x7F800000 >> DROPPED_BITS
"""Bins from here on hold infinity and NaN."""
MIDDLES = ((torch.arange(FINITE, dtype=torch.int32) * 2 + 1) << (DROPPED_BITS - 1)).view(torch.float32).double().numpy()
"""``[FINITE]`` fp64: of each bin."""
MIDDLES[0] = 0.0  # exact zeros, and what fp32 can hardly tell from them


@dataclass(frozen=True)
class LiveTally:
    """Of one delta or of several together, over all shards, on the CPU."""

    entries: int
    l1: float
    """‖δ‖₁"""
    square: float
    """‖δ‖₂²"""
    largest: float
    """The largest |δ|."""
    small: Tensor
    """``[1 + K]`` int64: exact zeros, and entries with |δ| ≤ thresholds[k]."""
    bins: Tensor
    """``[BINS]`` int64: entries whose |δ| as fp32 begins with these bits."""
    rank: float = 0.0
    """Effective ranks of the products s·BA, added up."""
    products: int = 0
    """How many of those there are."""

    def __add__(self, other: LiveTally) -> LiveTally:
        sums = {name: value + getattr(other, name) for name, value in vars(self).items()}
        # Not `max`, which would forget a NaN.
        largest = torch.tensor([self.largest, other.largest], dtype=torch.float64).amax()
        return LiveTally(**{**sums, "largest": float(largest)})

    @property
    def zeros(self) -> int:
        """Entries that are exactly zero."""
        return int(self.small[0])

    @property
    def magnitudes(self) -> Magnitudes:
        """Each entry taken for the middle of its bin: 3 % of it at most."""
        return Magnitudes(self.bins.numpy(), MIDDLES)


def measurable(delta: LiveDelta) -> Measurable:
    """δ itself, whatever its norm is taken of."""
    product = delta.product if isinstance(delta, FactorsDelta) else delta
    assert isinstance(product, LowRankDelta | ExpertsDelta | FullDelta)
    return product


@torch.no_grad()
def tally(delta: Measurable, thresholds: Sequence[float]) -> LiveTally:
    """Count and sum δ's entries; under FSDP2 every process must take part."""
    if isinstance(delta, FullDelta):
        return _tally_difference(delta, thresholds)
    pairs = [(whole(delta.A), whole(delta.B))] if isinstance(delta, LowRankDelta) else delta.factors()
    return total(_tally_product(A, B, delta.scale, thresholds) for A, B in pairs)


def total(tallies: Iterable[LiveTally]) -> LiveTally:
    """All of them together."""
    return reduce(LiveTally.__add__, tallies)


@ieee_products()
def _tally_product(A: Tensor, B: Tensor, scale: float, thresholds: Sequence[float]) -> LiveTally:
    size = abs(scale)
    count = _Tallying(A.device, unscaled((0.0, *thresholds), scale))
    for block in product_blocks(A, B):
        count.add(block.abs_(), size)
    return LiveTally(
        B.shape[0] * A.shape[1],
        size * count.norm.item(),
        size**2 * count.square.item(),
        size * count.largest.item(),
        count.small.cpu(),
        count.bins.cpu(),
        effective_rank(B, A),
        1,
    )


def _tally_difference(delta: FullDelta, thresholds: Sequence[float]) -> LiveTally:
    shard = local(delta.parameter)
    count = _Tallying(shard.device, (0.0, *thresholds))
    for _, block in difference_blocks(shard, delta.reference, memory_order(shard)):
        count.add(block.abs_(), 1.0)
    # All in one, because each costs a round over the processes; fp64 holds the counts exactly.
    sums = torch.cat([count.norm[None], count.square[None], count.small.double(), count.bins.double()])
    l1, square, *counts = sum_over_shards(sums, delta.parameter).tolist()
    small, bins = torch.tensor(counts, dtype=torch.float64).long().split([1 + len(thresholds), BINS])
    largest = largest_over_shards(count.largest, delta.parameter).item()
    return LiveTally(delta.entries, l1, square, largest, small, bins)


class _Tallying(Count):
    """Adds up blocks of magnitudes; the histogram alone has the scale in it."""

    def __init__(self, device: torch.device, limits: Sequence[float]) -> None:
        super().__init__(device, limits)
        self.square = torch.zeros((), dtype=torch.float64, device=device)
        self.largest = torch.zeros((), dtype=torch.float64, device=device)
        self.bins = torch.zeros(BINS, dtype=torch.int64, device=device)

    def add(self, magnitudes: Tensor, size: float = 1.0) -> None:
        """Take in one block, which is scaled in place."""
        super().add(magnitudes)
        flat = magnitudes.view(-1)
        self.square += flat.dot(flat)
        self.largest = torch.maximum(self.largest, flat.amax().double())
        bits = flat.mul_(size).float().view(torch.int32)
        self.bins += torch.bincount(bits >> DROPPED_BITS, minlength=BINS)
