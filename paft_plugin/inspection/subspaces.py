"""How far two adapters' changes of one matrix share directions. Shapes: `m` rows, `n` columns, `r` rank."""

from __future__ import annotations

import torch
from torch import Tensor

from paft_plugin.inspection.measures import Subspaces

Factors = tuple[Tensor, Tensor]


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
