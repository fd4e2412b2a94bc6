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
