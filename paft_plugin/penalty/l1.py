"""‖δ‖₁ of one live delta: norm, sparsity counts and subgradient in one pass over blocks of δ.

Shape letters: `O` rows of δ, `I` columns of δ, `R` rank, `K` thresholds. A block is a few rows of δ, so nothing of size O × I is
ever held. The subgradient at δ = 0 is exactly 0. Arithmetic is fp32 whatever the parameters' dtype; the norm is summed over
blocks in fp64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Fastest or level with it for every Llama-3-8B shape on a CPU core (penalty/LOG.md): 1 MiB of fp32 stays in its cache.
BLOCK_ENTRIES = 1 << 18


@dataclass(frozen=True)
class L1Pass:
    """What one pass over a delta measures."""

    norm: Tensor  # [] fp64: ‖δ‖₁
    small: Tensor  # [K] int64: entries with |δ| ≤ thresholds[k]
    entries: int


@dataclass(frozen=True)
class GradientSink:
    """Where a pass adds `strength` × its subgradient: a parameter's `.grad`, in its own dtype."""

    gradient: Tensor
    strength: float


def l1_of_product(
    A: Tensor,
    B: Tensor,
    scale: float,
    thresholds: Sequence[float] = (),
    sink_A: GradientSink | None = None,
    sink_B: GradientSink | None = None,
) -> L1Pass:
    """‖s·BA‖₁ of a low-rank delta.

    Args:
        A: ``[R, I]``, any float dtype.
        B: ``[O, R]``, any float dtype.
        scale: s, the adapter's scaling.
        thresholds: K sparsity thresholds on ``|s·BA|``.
        sink_A: takes ``|s|·Bᵀ sign(BA)``, ``[R, I]``.
        sink_B: takes ``|s|·sign(BA) Aᵀ``, ``[O, R]``.

    Source: L = L_sft + λ‖δ_sft‖₁ of arXiv 2406.17923; that it falls on the product is our choice.
    """
    A32 = A.detach().float()
    grad_A = torch.zeros_like(A32) if sink_A else None
    norm, small = _empty_counts(A, thresholds)
    size = abs(scale)
    # A scale of 0 makes every entry 0, which no division by it can express.
    limits = [threshold / size if size else float("inf") for threshold in thresholds]
    rows = max(1, BLOCK_ENTRIES // A.shape[1])
    for start in range(0, B.shape[0], rows):
        B32 = B[start : start + rows].detach().float()
        block = B32 @ A32  # [rows, I]
        if sink_A or sink_B:
            signs = block.sign()
            if grad_A is not None:
                grad_A.addmm_(B32.T, signs)
            if sink_B:
                sink_B.gradient[start : start + rows].add_(signs @ A32.T, alpha=sink_B.strength * size)
        _count(block.abs_(), limits, norm, small)
    if sink_A and grad_A is not None:
        sink_A.gradient.add_(grad_A, alpha=sink_A.strength * size)
    return L1Pass(norm * size, small, B.shape[0] * A.shape[1])


def l1_of_difference(
    parameter: Tensor,
    reference: Tensor | None,
    thresholds: Sequence[float] = (),
    sink: GradientSink | None = None,
) -> L1Pass:
    """‖θ − θ_pre‖₁ of a parameter that is trained itself.

    Args:
        parameter: θ, any shape and float dtype.
        reference: θ_pre in the same shape, or None for θ_pre = 0 (the L1 norm of a factor).
        thresholds: K sparsity thresholds on ``|θ − θ_pre|``.
        sink: takes ``sign(θ − θ_pre)``, in θ's shape; its gradient is contiguous.
    """
    norm, small = _empty_counts(parameter, thresholds)
    flat = parameter.detach().reshape(-1)
    flat_reference = None if reference is None else reference.detach().reshape(-1)
    flat_gradient = sink.gradient.view(-1) if sink else None
    for start in range(0, flat.numel(), BLOCK_ENTRIES):
        block = slice(start, start + BLOCK_ENTRIES)
        # A copy, never a view of the parameter: its magnitudes are taken in place below.
        delta = flat[block].to(torch.float32, copy=True)
        if flat_reference is not None:
            delta -= flat_reference[block].to(delta)
        if sink and flat_gradient is not None:
            flat_gradient[block].add_(delta.sign(), alpha=sink.strength)
        _count(delta.abs_(), thresholds, norm, small)
    return L1Pass(norm, small, parameter.numel())


def _empty_counts(like: Tensor, thresholds: Sequence[float]) -> tuple[Tensor, Tensor]:
    return (
        torch.zeros((), dtype=torch.float64, device=like.device),
        torch.zeros(len(thresholds), dtype=torch.int64, device=like.device),
    )


def _count(magnitudes: Tensor, limits: Sequence[float], norm: Tensor, small: Tensor) -> None:
    norm += magnitudes.sum()
    for k, limit in enumerate(limits):
        small[k] += (magnitudes <= limit).sum()
