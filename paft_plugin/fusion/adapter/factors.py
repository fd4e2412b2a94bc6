"""The arithmetic of a fused adapter: factors set side by side, or the best few directions of a delta, and what they miss.

Shapes: `O` output features, `I` input features, `r` rank of what comes in, `R` rank of what goes out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Of the randomised SVD: as many directions more as are wanted, at least so many …
SPARE = 16
# … and so often multiplied by the delta. A trimmed delta has many directions that are nearly equally strong: with four the
# error was within 0.13 % of the least possible for each of TIES' deltas in LOG.md, with one up to 1.4 % above it.
POWERS = 4
# Rows whose fp64 copies are in memory at a time.
BLOCK = 1 << 21


@dataclass(frozen=True)
class Product:
    """B·A, as an adapter with scale 1 adds it to a weight."""

    B: Tensor
    """``(O, R)``, fp32."""
    A: Tensor
    """``(R, I)``, fp32."""

    @property
    def rank(self) -> int:
        """R."""
        return self.A.shape[0]

    @property
    def is_finite(self) -> bool:
        """Whether B·A holds neither NaN nor infinity in fp32; it is formed only where its factors do not rule that out."""
        bound = float(self.B.abs().amax(dim=0).double() @ self.A.abs().amax(dim=1).double())
        if bound <= torch.finfo(torch.float32).max:
            return True
        rows = max(1, BLOCK // self.A.shape[1])
        return all(bool((B @ self.A).isfinite().all()) for B in self.B.split(rows))


@dataclass(frozen=True)
class Truncation:
    """A product that stands for a delta, and what it misses of it."""

    product: Product
    square: float
    """‖δ‖² (Frobenius)."""
    squared_error: float
    """‖δ − B·A‖²."""
    tail: Tensor | None = None
    """``(min(O, I) + 1,)``, fp64: the least squared error of each rank from 0 on, where that was worked out."""

    @property
    def relative_error(self) -> float:
        """‖δ − B·A‖ / ‖δ‖; 0 for a delta that is zero."""
        return math.sqrt(self.squared_error / self.square) if self.square else 0.0


def side_by_side(
    parts: Sequence[tuple[float, Tensor, Tensor]],  # scale, B (O, r), A (r, I)
) -> Product:
    """Σ scale·B·A, exactly: the factors of all parts in one, of the rank that theirs add up to."""
    B = torch.cat([(B.double() * scale).float() for scale, B, _ in parts], dim=1)
    A = torch.cat([A.float() for _, _, A in parts], dim=0)
    return Product(B.contiguous(), A.contiguous())


def truncate_product(product: Product, rank: int) -> Truncation:
    """The best approximation of B·A by a product of `rank`; B·A itself is never formed.

    With B = Q_B·R_B and Aᵀ = Q_A·R_A the singular values of B·A are those of the small R_B·R_Aᵀ. All of it in fp64.
    """
    Q_B, R_B = torch.linalg.qr(product.B.double())
    Q_A, R_A = torch.linalg.qr(product.A.double().T)
    U, S, Vh = torch.linalg.svd(R_B @ R_A.T, full_matrices=False)
    tail = _tail(S)
    square = float(tail[0])
    if rank >= product.rank:
        return Truncation(product, square, 0.0, tail)
    root = S[:rank].sqrt()
    kept = Product(_plain((Q_B @ U[:, :rank]) * root), _plain((root[:, None] * Vh[:rank]) @ Q_A.T))
    return Truncation(kept, square, float(tail[kept.rank]), tail)


def truncate_dense(delta: Tensor, rank: int) -> Truncation:
    """Nearly the best approximation of a delta ``(O, I)`` by a product of `rank`: the same for the same delta.

    By a randomised SVD (Halko, Martinsson and Tropp, arXiv 0909.4061, algorithm 4.4), where that saves work, whose directions
    come from a generator of its own. The error is that of the product as it is stored, not an estimate.
    """
    wanted = min(rank, *delta.shape)
    square = squared_norm(delta)
    if not square:
        return Truncation(Product(torch.zeros(delta.shape[0], wanted), torch.zeros(wanted, delta.shape[1])), 0.0, 0.0)
    U, S, Vh = _strongest(delta, wanted)
    root = S[:wanted].clamp(min=0).sqrt()
    product = Product(_plain(U[:, :wanted] * root), _plain(root[:, None] * Vh[:wanted]))
    return Truncation(product, square, _squared_error(delta, product))


def least_errors(delta: Tensor) -> Tensor:
    """`Truncation.tail` of a delta ``(O, I)``: the eigenvalues of its Gram matrix, in fp64, are its squared singular values."""
    wide = delta if delta.shape[0] <= delta.shape[1] else delta.T
    gram = torch.zeros(wide.shape[0], wide.shape[0], dtype=torch.float64, device=delta.device)
    for columns in wide.split(max(1, BLOCK // wide.shape[0]), dim=1):
        exact = columns.double()
        gram += exact @ exact.T
    return _tail(torch.linalg.eigvalsh(gram).flip(0).clamp(min=0).sqrt())


def squared_norm(delta: Tensor) -> float:
    """‖δ‖² of a tensor of any shape, with fp64 sums."""
    return sum(float(block.double().square().sum()) for block in delta.flatten().split(BLOCK))


def _squared_error(delta: Tensor, product: Product) -> float:
    rows = max(1, BLOCK // delta.shape[1])
    A = product.A.to(delta.device)
    return sum(
        squared_norm(part - B @ A)
        for part, B in zip(delta.split(rows), product.B.to(delta.device).split(rows), strict=True)
    )


def _strongest(delta: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """At least `rank` singular directions: U ``(O, k)``, S ``(k,)``, Vᴴ ``(k, I)``."""
    directions = rank + max(rank, SPARE)
    if 2 * directions >= min(delta.shape):
        U, S, Vh = torch.linalg.svd(delta, full_matrices=False)
        return U, S, Vh
    start = torch.randn(delta.shape[1], directions, generator=torch.Generator().manual_seed(0))
    Q = torch.linalg.qr(delta @ start.to(delta.device)).Q
    for _ in range(POWERS):
        Q = torch.linalg.qr(delta.T @ Q).Q
        Q = torch.linalg.qr(delta @ Q).Q
    U, S, Vh = torch.linalg.svd(Q.T @ delta, full_matrices=False)
    return Q @ U, S, Vh


def _tail(S: Tensor) -> Tensor:
    squares = S.double().square().cpu()
    return torch.cat([squares.flip(0).cumsum(0).flip(0), torch.zeros(1, dtype=torch.float64)])


def _plain(factor: Tensor) -> Tensor:
    return factor.float().cpu().contiguous()
