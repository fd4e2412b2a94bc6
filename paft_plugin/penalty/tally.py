"""What one pass over the entries of a live delta counts and sums, and the measures that follow from it.

Shape letters: `O` rows of δ, `I` columns, `R` rank, `K` thresholds. As in l1.py nothing of size O × I is held, and blocks are
summed in fp64. The histogram of |δ| holds exact counts in bins of equal width within each power of two, read off the bits of the
fp32 number: its exponent and the first bits of its mantissa.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from paft_plugin.penalty.l1 import (
    Count,
    difference_blocks,
    ieee_products,
    memory_order,
    product_blocks,
    unscaled,
)
from paft_plugin.penalty.live import ExpertsDelta, FactorsDelta, FullDelta, LiveDelta, LowRankDelta
from paft_plugin.penalty.sharded import largest_over_shards, local, sum_over_shards, whole
from paft_plugin.penalty.zero import PartitionedDelta

Measurable = LowRankDelta | ExpertsDelta | FullDelta

DROPPED_BITS = 19  # of an fp32's 31 without its sign: leaves the exponent's 8 and 4 of the mantissa
BINS = 1 << (31 - DROPPED_BITS)
BINS_PER_OCTAVE = 1 << (23 - DROPPED_BITS)


@dataclass(frozen=True)
class Tally:
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
    """``[BINS]`` int64: entries whose |δ| lies within `bin_edges`."""
    rank: float = 0.0
    """Effective ranks of the products s·BA, added up."""
    products: int = 0
    """How many of those there are."""

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.entries + other.entries,
            self.l1 + other.l1,
            self.square + other.square,
            # Not `max`, which would forget a NaN.
            float(torch.tensor([self.largest, other.largest], dtype=torch.float64).amax()),
            self.small + other.small,
            self.bins + other.bins,
            self.rank + other.rank,
            self.products + other.products,
        )


def measurable(delta: LiveDelta) -> Measurable:
    """δ itself, whatever its norm is taken of and however its gradients are kept."""
    if isinstance(delta, PartitionedDelta):
        delta = delta.delta
    if isinstance(delta, FactorsDelta):
        delta = delta.product
    assert isinstance(delta, LowRankDelta | ExpertsDelta | FullDelta)
    return delta


@torch.no_grad()
def tally(delta: Measurable, thresholds: Sequence[float]) -> Tally:
    """Count and sum δ's entries; under FSDP2 every process must take part."""
    if isinstance(delta, FullDelta):
        return _tally_difference(delta, thresholds)
    pairs = [(whole(delta.A), whole(delta.B))] if isinstance(delta, LowRankDelta) else delta.factors()
    return total(_tally_product(A, B, delta.scale, thresholds) for A, B in pairs)


def total(tallies: Iterable[Tally]) -> Tally:
    """All of them together."""
    return reduce(Tally.__add__, tallies)


def hoyer(tally: Tally) -> float:
    """(√n − ‖δ‖₁/‖δ‖₂) / (√n − 1): 0 if all |δ| are equal, 1 if one entry is all; NaN if δ = 0 or n = 1.

    Source: Hoyer 2004, "Non-negative matrix factorization with sparseness constraints".
    """
    if tally.square == 0 or tally.entries < 2:
        return math.nan
    root = math.sqrt(tally.entries)
    return (root - tally.l1 / math.sqrt(tally.square)) / (root - 1)


def top_share(tally: Tally, share: float) -> float:
    """The part of ‖δ‖₁ that the largest `share` of the entries holds, in [0, 1]; NaN if δ = 0.

    From the histogram, each entry taken for the middle of its bin: 3 % of it at most.
    """
    if tally.square == 0:
        return math.nan
    filled = tally.bins > 0
    counts = tally.bins[filled].double().flip(0)  # from the largest
    edges = bin_edges()
    sizes = ((edges[:-1] + edges[1:]) / 2)[filled].flip(0)
    before = counts.cumsum(0) - counts
    taken = (share * tally.entries - before).clamp(min=0).minimum(counts)
    return float((taken * sizes).sum() / (counts * sizes).sum())


def bin_edges() -> Tensor:
    """``[BINS + 1]`` fp64: where each bin of |δ| begins, and where the last ends."""
    bits = torch.arange(BINS + 1, dtype=torch.int64) << DROPPED_BITS
    bits[-1] -= 1  # the sign bit would be next
    return bits.to(torch.int32).view(torch.float32).double()


def effective_rank(A: Tensor, B: Tensor) -> float:
    """exp(entropy of the singular values of BA, scaled to sum to 1), in [1, R]; 0 if BA = 0, NaN if it isn't finite.

    From the factors' Gram matrices in fp64, so that no O × I matrix is decomposed: singular values below 1e-8 of the largest are
    lost, which the entropy does not notice. Source: Roy & Vetterli 2007, "The effective rank".

    Args:
        A: ``[R, I]``, any float dtype.
        B: ``[O, R]``, any float dtype.
    """
    # R × R matrices: decomposed sooner by a CPU than by a GPU.
    gram_A, gram_B = ((factor.double() @ factor.double().T).cpu() for factor in (A, B.T))
    if not (gram_A.isfinite().all() and gram_B.isfinite().all()):
        return math.nan
    values, vectors = torch.linalg.eigh(gram_A)
    root = vectors * values.clamp(min=0).sqrt()  # root rootᵀ = AAᵀ
    sizes = torch.linalg.eigvalsh(root.T @ gram_B @ root).clamp(min=0).sqrt()
    if not sizes.any():
        return 0.0
    return float(torch.special.entr(sizes / sizes.sum()).sum().exp())


@ieee_products()
def _tally_product(A: Tensor, B: Tensor, scale: float, thresholds: Sequence[float]) -> Tally:
    size = abs(scale)
    count = _Tallying(A.device, unscaled((0.0, *thresholds), scale))
    for block in product_blocks(A, B):
        count.add(block.abs_(), size)
    return Tally(
        B.shape[0] * A.shape[1],
        size * count.norm.item(),
        size**2 * count.square.item(),
        size * count.largest.item(),
        count.small.cpu(),
        count.bins.cpu(),
        effective_rank(A, B),
        1,
    )


def _tally_difference(delta: FullDelta, thresholds: Sequence[float]) -> Tally:
    shard = local(delta.parameter)
    count = _Tallying(shard.device, (0.0, *thresholds))
    for _, block in difference_blocks(shard, delta.reference, memory_order(shard)):
        count.add(block.abs_(), 1.0)
    # All in one, because each costs a round over the processes; fp64 holds the counts exactly.
    sums = torch.cat([count.norm[None], count.square[None], count.small.double(), count.bins.double()])
    l1, square, *counts = sum_over_shards(sums, delta.parameter).tolist()
    small, bins = torch.tensor(counts, dtype=torch.float64).long().split([1 + len(thresholds), BINS])
    largest = largest_over_shards(count.largest, delta.parameter).item()
    return Tally(delta.entries, l1, square, largest, small, bins)


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
