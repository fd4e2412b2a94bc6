"""The measures again, the plain way: whole tensors, sorts, fp64, mergekit's own functions. Nothing of ours but names."""

from __future__ import annotations

import numpy as np
import torch
from mergekit.merge_methods.generalized_task_arithmetic import get_mask
from mergekit.sparsify import magnitude
from torch import Tensor


def gini(entries: Tensor) -> float:
    """Mean absolute difference of all ordered pairs / (2 · mean), by ranks."""
    sizes = entries.double().abs().flatten().sort().values
    n = len(sizes)
    ranks = torch.arange(1, n + 1, dtype=torch.float64)
    return float(((2 * ranks - n - 1) * sizes).sum() / (n * sizes.sum()))


def top_share(entries: Tensor, share: float) -> float:
    sizes = entries.double().abs().flatten().sort(descending=True).values
    return float(sizes[: max(1, int(share * len(sizes)))].sum() / sizes.sum())


def hoyer(entries: Tensor) -> float:
    sizes = entries.double().abs().flatten()
    root = np.sqrt(len(sizes))
    return float((root - sizes.sum() / sizes.norm()) / (root - 1))


def effective_rank(matrix: Tensor) -> float:
    squares = torch.linalg.svdvals(matrix.double()).square()
    return float(squares.sum() ** 2 / squares.square().sum())


def ties(one: Tensor, other: Tensor, density: float) -> dict[str, tuple[float, float]]:
    """What mergekit's trimming keeps (entries ≠ 0) and its election of signs takes, of each branch; and Σ|δ| of the latter."""
    trimmed = torch.stack([magnitude(delta, density) for delta in (one, other)])
    mask = get_mask(trimmed, method="sum")
    kept, elected = trimmed != 0, mask.bool() & (trimmed != 0)
    first, second = (tuple(int(part.sum()) for part in each) for each in (kept, elected))
    mass = (trimmed.double().abs() * elected).flatten(1).sum(dim=1)
    return {"kept": first, "elected": second, "mass": (float(mass[0]), float(mass[1]))}


def kept(delta: Tensor, density: float) -> Tensor:
    """Where mergekit's trimming keeps an entry ≠ 0."""
    return magnitude(delta, density) != 0


def election(deltas: list[Tensor], density: float) -> list[tuple[float, float, float, float, float]]:
    """Of each of many deltas: entries kept, won, lost to one other, lost only to several; and Σ|δ| of those that won."""
    trimmed = torch.stack([magnitude(delta, density) for delta in deltas]).double()
    won = get_mask(trimmed, method="sum").bool() & (trimmed != 0)
    lost = (trimmed != 0) & ~won
    own_side = torch.stack([(trimmed.sign() == each.sign()).double().mul(trimmed.abs()).sum(0) for each in trimmed])
    greatest = torch.stack([((trimmed.sign() == -each.sign()) * trimmed.abs()).amax(0) for each in trimmed])
    # Of a sum of zero the sign is positive: an equal opponent is enough for it, and not for the other.
    to_one = lost & ((greatest > own_side) | ((greatest == own_side) & (trimmed < 0)))
    mass = (trimmed.abs() * won).flatten(1).sum(dim=1)
    counts = [each.flatten(1).sum(dim=1).double() for each in (trimmed != 0, won, to_one, lost & ~to_one)]
    return [tuple(float(each[place]) for each in (*counts, mass)) for place in range(len(deltas))]  # type: ignore[misc]
