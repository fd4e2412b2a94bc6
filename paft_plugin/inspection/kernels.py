"""Loops over blocks of δ, compiled by numba (which axolotl brings): each reads a block once and lets other threads run.

numpy and torch would take a pass over memory for every one of these sums; here they share one, in the processor's caches.
Sums are in fp64; `reassoc` lets the compiler add in several lanes at once, which changes only their last bits.

A *key* stands for a magnitude in a histogram: the upper 16 bits of |δ| rounded to bfloat16. Keys are in the order of magnitudes.
Shapes: `R` rows, `C` columns, `K` keys, `T` thresholds, `D` densities.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Counts = NDArray[np.int64]

KEYS = 0x8001
"""bfloat16 magnitudes from 0 to infinity, and NaN above."""
LANES = 4
"""Copies of a histogram that neighbouring entries take turns in: they often have the same key, and would wait for one another."""
FINE = 0x10000
"""fp32 magnitudes with one key."""

_MAGNITUDE = np.uint32(0x7FFFFFFF)
_HALF = np.uint32(0x8000)
_SHIFT = np.uint32(16)
_ZERO = np.uint32(0)
_ONE = np.uint32(1)

# Counters are fp32, sixteen to a vector (numba would widen integers to 64 bits); they are exact up to 2²⁴ entries.
NONE, ONE = np.float32(0), np.float32(1)
BLOCK = 1 << 18
"""Entries of a block at which its arrays still fit the caches; blocks may have up to 2²⁴."""
FEW = 1 << 12
"""Entries over which magnitudes may be added up in fp32 before the sum goes into fp64; the nearest cache holds them meanwhile."""


def _compiled(loop: Callable[..., Any]) -> Any:
    """Compiled at the first call; the code is kept on disk beside this file, or in the user's cache if that is read-only."""
    options: dict[str, Any] = {"nogil": True, "fastmath": {"reassoc", "nsz"}}
    try:
        return njit(cache=True, **options)(loop)
    except RuntimeError:  # Neither can be written.
        return njit(**options)(loop)


@_compiled
def widen(
    values: NDArray[np.uint16],  # (n,) bits of bfloat16
    wide: NDArray[np.uint32],  # (n,) becomes their bits as fp32
) -> None:
    for index in range(values.size):
        wide[index] = np.uint32(values[index]) << _SHIFT


@_compiled
def subtract(
    after: NDArray[np.uint16],  # (n,) bits of θ in bfloat16
    before: Floats,  # (n,) θ_pre
    change: Floats,  # (n,) becomes δ, in fp32
) -> None:
    scratch = np.empty(FEW, np.uint32)
    wide = scratch.view(np.float32)
    for start in range(0, after.size, FEW):
        few, old, new = after[start : start + FEW], before[start : start + FEW], change[start : start + FEW]
        for index in range(few.size):
            scratch[index] = np.uint32(few[index]) << _SHIFT
        for index in range(few.size):
            new[index] = wide[index] - old[index]


@_compiled
def tally(
    block: Floats,  # (R, C) δ
    thresholds: Floats,  # (T,)
    small: Counts,  # (T,) gains the entries with |δ| ≤ threshold
    squares: Doubles,  # (R,) becomes each row's sum of δ²
) -> float:
    """Sum of |δ|, besides what the arguments gain."""
    total = 0.0
    for row in range(block.shape[0]):
        values = block[row]
        l1, l2 = 0.0, 0.0
        for index in range(values.size):
            size = np.float64(abs(values[index]))
            l1 += size
            l2 += size * size
        for each in range(thresholds.size):
            threshold, count = thresholds[each], NONE
            for index in range(values.size):
                count += ONE if abs(values[index]) <= threshold else NONE
            small[each] += np.int64(count)
        squares[row] = l2
        total += l1
    return total


@_compiled
def largest(bits: NDArray[np.uint32]) -> np.uint32:
    """The bits of the greatest |δ|: integers compare sooner than floats that might be NaN, which is the greatest here."""
    most = np.uint32(0)
    for index in range(bits.size):
        size = bits[index] & _MAGNITUDE
        most = size if size > most else most
    return most


@_compiled
def count_keys(
    bits: NDArray[np.uint32],  # (n,) δ's
    counts: NDArray[np.uint32],  # (LANES, K), gains the entries of each key
) -> None:
    whole = bits.size - bits.size % LANES
    for index in range(0, whole, LANES):
        for lane in range(LANES):
            counts[lane, ((bits[index + lane] & _MAGNITUDE) + _HALF) >> _SHIFT] += _ONE
    for index in range(whole, bits.size):
        counts[0, ((bits[index] & _MAGNITUDE) + _HALF) >> _SHIFT] += _ONE


@_compiled
def count_within(
    bits: NDArray[np.uint32],  # (n,) δ's
    slots: NDArray[np.uint32],  # (K,) 0, or 1 + where a key's magnitudes are counted
    fine: NDArray[np.uint32],  # ((1 + D) · FINE,), gains the entries of each fp32 magnitude within each of D keys
) -> None:
    for index in range(bits.size):
        place = (bits[index] & _MAGNITUDE) + _HALF
        slot = slots[place >> _SHIFT]
        # Entries of no interest are counted too, in a place of their own: a branch would be guessed wrong too often.
        low = place & np.uint32(0xFFFF) if slot > 0 else np.uint32(index & 15)
        fine[(slot << _SHIFT) | low] += _ONE


@_compiled
def count_likely(
    bits: NDArray[np.uint32],  # (n,) δ's
    slots: NDArray[np.uint8],  # (K,) as of `count_within`
    fine: NDArray[
        np.uint32
    ],  # (D · FINE,), gains the entries of each fp32 magnitude within each of D keys, but those that are
    #                             the key itself, as most differences of bf16 weights are: so the branch is seldom taken
) -> None:
    for index in range(bits.size):
        place = (bits[index] & _MAGNITUDE) + _HALF
        slot, low = np.uint32(slots[place >> _SHIFT]), place & np.uint32(0xFFFF)
        if (slot > 0) & (low != _HALF):
            fine[((slot - _ONE) << _SHIFT) | low] += _ONE


@_compiled
def squared(values: Floats) -> float:
    """Sum of squares, in fp64."""
    total = 0.0
    for index in range(values.size):
        value = np.float64(values[index])
        total += value * value
    return total


@_compiled
def hidden_by_bfloat16(
    base: NDArray[np.uint32],  # (n,) fp32 bits of θ_pre
    moved: NDArray[np.uint32],  # (n,) fp32 bits of θ_pre + δ
) -> int:
    """Entries that are equal once both are rounded to bfloat16 (to nearest, ties to even)."""
    count = NONE
    for index in range(base.size):
        one, other = base[index], moved[index]
        one = np.uint32(one + np.uint32(0x7FFF) + ((one >> _SHIFT) & _ONE)) >> _SHIFT
        other = np.uint32(other + np.uint32(0x7FFF) + ((other >> _SHIFT) & _ONE)) >> _SHIFT
        # -0 is 0.
        one = _ZERO if one == _HALF else one
        other = _ZERO if other == _HALF else other
        count += ONE if one == other else NONE
    return int(count)


@_compiled
def products(one: Floats, other: Floats) -> tuple[float, float, float, float]:
    """Σ|δ₁δ₂| over equal signs and over opposite ones, Σδ₁², Σδ₂²."""
    signed, unsigned, first, second = 0.0, 0.0, 0.0, 0.0
    for index in range(one.size):
        a, b = np.float64(one[index]), np.float64(other[index])
        signed += a * b
        unsigned += abs(a * b)
        first += a * a
        second += b * b
    return (unsigned + signed) / 2, (unsigned - signed) / 2, first, second


@_compiled
def overlaps(
    one: Floats,
    other: Floats,
    thresholds: Floats,  # (T,)
    counts: Counts,  # (T, 4), gains |A|, |B|, |A ∩ B| and of these the entries of opposite signs
) -> None:
    for each in range(thresholds.size):
        threshold = thresholds[each]
        first, second, both, conflicts = NONE, NONE, NONE, NONE
        for index in range(one.size):
            a, b = one[index], other[index]
            in_a = ONE if abs(a) > threshold else NONE
            in_b = ONE if abs(b) > threshold else NONE
            first += in_a
            second += in_b
            both += in_a * in_b
            conflicts += in_a * in_b if (a < 0) != (b < 0) else NONE
        counts[each, 0] += np.int64(first)
        counts[each, 1] += np.int64(second)
        counts[each, 2] += np.int64(both)
        counts[each, 3] += np.int64(conflicts)


@_compiled
def elect(
    one: Floats,
    other: Floats,
    edges: Floats,  # (D, 2) the least magnitude that is kept of each delta
    shares: Floats,  # (D, 2) the share that is kept of the entries at that magnitude
    outcome: Doubles,  # (D, 6), gains entries kept in both, of these in conflict, of these lost by the first and by the second,
    #                             and Σ|δ| of the entries of the first and of the second that are elected
) -> None:
    for start in range(0, one.size, FEW):
        # As arrays of their own: numba vectorises no loop that does not begin at 0.
        few, others = one[start : start + FEW], other[start : start + FEW]
        for each in range(edges.shape[0]):
            edge_a, edge_b, share_a, share_b = edges[each, 0], edges[each, 1], shares[each, 0], shares[each, 1]
            both, conflicts, lost_a, mass_a, mass_b = NONE, NONE, NONE, NONE, NONE
            for index in range(few.size):
                a, b = few[index], others[index]
                size_a, size_b = abs(a), abs(b)
                kept_a = ONE if size_a > edge_a else (share_a if size_a == edge_a else NONE)
                kept_b = ONE if size_b > edge_b else (share_b if size_b == edge_b else NONE)
                kept = kept_a * kept_b
                opposite = kept if (a < 0) != (b < 0) else NONE
                lost = opposite if (size_b > size_a) | ((size_b == size_a) & (a < 0)) else NONE
                both += kept
                conflicts += opposite
                lost_a += lost
                mass_a += size_a * (kept_a - lost)
                mass_b += size_b * (kept_b - (opposite - lost))
            outcome[each, 0] += both
            outcome[each, 1] += conflicts
            outcome[each, 2] += lost_a
            outcome[each, 3] += conflicts - lost_a
            outcome[each, 4] += mass_a
            outcome[each, 5] += mass_b


@_compiled
def elect_all(
    block: Floats,  # (B, n) δ of each of B branches
    edges: Floats,  # (D, B) as of `elect`
    shares: Floats,  # (D, B)
    seeds: NDArray[np.uint32],  # (B,) of the lots that entries at an edge draw
    first: int,  # the place of the block's first entry in its tensor
    outcome: Doubles,  # (D, B, 4), gains entries that are elected, lost to one, lost to several, and Σ|δ| of the elected ones
) -> None:
    """The election of signs among all branches."""
    branches = block.shape[0]
    lots, kept = np.empty((branches, FEW), np.uint32), np.empty((branches, FEW), np.float32)
    positive, negative = np.empty(FEW), np.empty(FEW)  # Σ|δ| of either sign
    scratch = np.empty((4, FEW), np.float32)
    greatest, least, sign, alone = scratch[0], scratch[1], scratch[2], scratch[3]
    for start in range(0, block.shape[1], FEW):
        few = min(FEW, block.shape[1] - start)
        for branch in range(branches):
            _draw_lots(np.uint32((first + start) & 0xFFFFFFFF), seeds[branch], lots[branch][:few])
        for each in range(edges.shape[0]):
            positive[:few], negative[:few], greatest[:few], least[:few] = 0, 0, 0, 0
            for branch in range(branches):
                values = block[branch, start : start + few]
                left, lot = kept[branch][:few], lots[branch][:few]
                _trim(values, lot, edges[each, branch], shares[each, branch], left)
                for index in range(few):
                    positive[index] += np.float64(max(left[index], NONE))
                    negative[index] += np.float64(max(-left[index], NONE))
                for index in range(few):
                    greatest[index] = max(greatest[index], left[index])
                    least[index] = min(least[index], left[index])
            for index in range(few):
                up, down = positive[index], negative[index]
                goes_up = up >= down
                by_one = (np.float64(greatest[index]) >= down) if goes_up else (np.float64(-least[index]) > up)
                sign[index] = ONE if goes_up else -ONE
                alone[index] = ONE if by_one else NONE
            for branch in range(branches):
                left = kept[branch][:few]
                won, lost, to_one, mass = NONE, NONE, NONE, NONE
                for index in range(few):
                    own = left[index] * sign[index]
                    won += ONE if own > 0 else NONE
                    lost += ONE if own < 0 else NONE
                    to_one += alone[index] if own < 0 else NONE
                    mass += max(own, NONE)
                outcome[each, branch, 0] += won
                outcome[each, branch, 1] += to_one
                outcome[each, branch, 2] += lost - to_one
                outcome[each, branch, 3] += mass


@_compiled
def _draw_lots(first: np.uint32, seed: np.uint32, lots: NDArray[np.uint32]) -> None:
    """Numbers that look random, of each place and seed the same (the finaliser of MurmurHash3)."""
    for index in range(lots.size):
        mixed = ((first + np.uint32(index)) * np.uint32(0x9E3779B1)) ^ seed
        mixed = (mixed ^ (mixed >> np.uint32(16))) * np.uint32(0x85EBCA6B)
        mixed = (mixed ^ (mixed >> np.uint32(13))) * np.uint32(0xC2B2AE35)
        lots[index] = mixed ^ (mixed >> np.uint32(16))


@_compiled
def _trim(values: Floats, lots: NDArray[np.uint32], edge: np.float32, share: np.float32, kept: Floats) -> None:
    """`kept` becomes what is left of `values`: of those at the edge the share that draws a small lot."""
    small = np.uint32(min(np.float64(share) * 4294967296.0, 4294967295.0))
    for index in range(values.size):
        value = values[index]
        size = abs(value)
        at_edge = value if lots[index] <= small else NONE
        kept[index] = value if size > edge else (at_edge if size == edge else NONE)


@_compiled
def measure(
    before: Floats,  # (R, C) θ_pre
    change: Floats,  # (R, C) δ
    thresholds: Floats,  # (T,)
    small: Counts,  # (T,) gains as of `tally`
    squares: Doubles,  # (R,) becomes each row's sum of δ²
    counts: NDArray[np.uint32],  # (LANES, K) gains as of `count_keys`
    slots: NDArray[np.uint8],  # (K,)
    fine: NDArray[np.uint32],  # (D · FINE,) gains as of `count_likely`; empty if no key is looked into
) -> tuple[float, np.uint32, int]:
    """Sum of |δ|, bits of the greatest, entries that bfloat16 hides; a few rows at a time, which stay in the nearest cache."""
    total, most, hidden = 0.0, np.uint32(0), 0
    columns = change.shape[1]
    step = max(1, FEW // columns)
    moved = np.empty(FEW, np.float32)
    for first in range(0, change.shape[0], step):
        total += tally(change[first : first + step], thresholds, small, squares[first : first + step])
        flat, old = change[first : first + step].reshape(-1), before[first : first + step].reshape(-1)
        for start in range(0, flat.size, FEW):
            few, ours = flat[start : start + FEW], old[start : start + FEW]
            bits = few.view(np.uint32)
            most = max(most, largest(bits))
            count_keys(bits, counts)
            if fine.size > 0:
                count_likely(bits, slots, fine)
            there = moved[: few.size]
            for index in range(few.size):
                there[index] = ours[index] + few[index]
            hidden += hidden_by_bfloat16(ours.view(np.uint32), there.view(np.uint32))
    return total, most, hidden


@_compiled
def compare(
    one: Floats,  # (n,)
    other: Floats,  # (n,)
    thresholds: Floats,  # (T,)
    sums: Doubles,  # (4,) gains `products`
    counts: Counts,  # (T, 4) gains as of `overlaps`
) -> None:
    """Everything of a pair that needs no trim, a few entries at a time."""
    for start in range(0, one.size, FEW):
        few, others = one[start : start + FEW], other[start : start + FEW]
        agreeing, opposing, first, second = products(few, others)
        sums[0] += agreeing
        sums[1] += opposing
        sums[2] += first
        sums[3] += second
        overlaps(few, others, thresholds, counts)


def bits_of(values: NDArray[Any]) -> NDArray[np.uint32]:
    """The bits of contiguous fp32 values, as a flat view."""
    return values.reshape(-1).view(np.uint32)
