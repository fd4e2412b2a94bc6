"""Effective rank of a stored delta's matrix, and how two adapters' subspaces coincide.

`deltas/measures.py` defines the rank, (Σσ²)² / Σσ⁴, and has it exactly from an adapter's factors; of any other delta it is
estimated here from sampled rows. It is ‖δ‖_F⁴ / ‖δδᵀ‖_F², and so one over the mean cos² of two rows drawn independently with
chances in proportion to their Σδ². That mean needs no decomposition and no second pass: pairs of the same row count with the
exact chance of drawing one twice, pairs of different rows are sampled. For one direction every cos² is 1, for many there are
thousands of pairs: both are sharp. Shapes: `m` rows, `n` columns, `r` rank, `s` sampled rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paft_plugin.deltas.delta import Delta
from paft_plugin.deltas.measures import effective_rank
from paft_plugin.inspection.kernels import Doubles
from paft_plugin.inspection.measures import Rank, Subspaces

Factors = tuple[Tensor, Tensor]
"""Left ``(m, r)`` and right ``(r, n)`` of an adapter's delta."""
SAMPLES = 128
FEW = 16
"""Rows after which files are opened anew: for each row the system maps megabytes around it, which count as our memory."""
SEED = 0


def rank_from_factors(left: Tensor, right: Tensor) -> Rank | None:
    """Of left · right, ``(m, r)`` and ``(r, n)``; None if it is zero or not finite."""
    value = effective_rank(left, right)
    return Rank(value, 0.0) if value > 0 else None


def estimated_rank(delta: Delta, name: str, squares: Doubles) -> Rank | None:
    """Of one matrix, from `squares`, Σδ² of each row, ``(m,)``, with its standard error (jackknife).

    None if it is no matrix, zero or not finite.
    """
    total = squares.sum()
    if len(delta.base.shape(name)) != 2 or not (np.isfinite(total) and total > 0):
        return None
    chances = squares / total
    drawn = np.random.default_rng(SEED).choice(len(chances), SAMPLES, p=chances)
    sampled = torch.cat([_rows(delta, name, few) for few in np.split(drawn, SAMPLES // FEW)]).double()
    directions = sampled / sampled.norm(dim=1, keepdim=True)
    cosines = (directions @ directions.T).square().numpy()  # (s, s)
    return _from_pairs(cosines, drawn[:, None] != drawn[None, :], float((chances**2).sum()))


def _rows(delta: Delta, name: str, places: NDArray[np.int64]) -> Tensor:
    read = delta.rows(name)
    return torch.cat([read(int(place), int(place) + 1) for place in places])


def _from_pairs(cosines: Doubles, different: NDArray[np.bool_], same: float) -> Rank:
    """The estimate from cos² of pairs of drawn rows, and which pairs are not of the `same`, which has that chance; ``(s, s)``."""
    sums, pairs = (cosines * different).sum(axis=1), different.sum(axis=1)
    if not pairs.sum():
        return Rank(1.0 / same, 0.0)

    def rank(mean: Any) -> Any:
        return 1 / (same + (1 - same) * mean)

    value = float(rank(sums.sum() / pairs.sum()))
    # Leaving out a draw takes its row and its column of pairs.
    left = pairs.sum() - 2 * pairs
    without = rank((sums.sum() - 2 * sums)[left > 0] / left[left > 0])
    count = len(without)
    error = float(np.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum())) if count else 0.0
    return Rank(value, error)


def spaces(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal bases of the column space ``(m, k)`` and the row space ``(n, k)`` of left · right, in fp64; k its rank."""
    q_left, r_left = torch.linalg.qr(left.double())
    q_right, r_right = torch.linalg.qr(right.double().T)
    u, sizes, v = torch.linalg.svd(r_left @ r_right.T)
    # What rounding of the fp32 factors leaves in a direction is none of the change.
    there = sizes > sizes.max() * max(left.shape[0], right.shape[1]) * torch.finfo(torch.float32).eps
    return q_left @ u[:, : len(sizes)][:, there], q_right @ v[: len(sizes)].T[:, there]


def compare_spaces(one: Factors, other: Factors) -> Subspaces | None:
    """The mean cos² of the principal angles; None if either change is zero or not finite."""
    if not all(bool(torch.isfinite(factor).all()) for factor in (*one, *other)):
        return None
    (columns, rows), (other_columns, other_rows) = spaces(*one), spaces(*other)
    fewer, more = sorted((columns.shape[1], other_columns.shape[1]))
    if not fewer:
        return None
    return Subspaces(
        columns=float((columns.T @ other_columns).square().sum()) / fewer,
        rows=float((rows.T @ other_rows).square().sum()) / fewer,
        columns_by_chance=more / columns.shape[0],
        rows_by_chance=more / rows.shape[0],
    )
