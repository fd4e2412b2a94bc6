"""‖δ‖₁ and ‖δ‖₂² of one live delta: their size and their (sub)gradient, each in one pass over blocks of δ.

Shape letters: `O` rows of δ, `I` columns of δ, `R` rank, `K` thresholds. A block is a few rows of δ, so nothing of size O × I is
ever held. The subgradient at δ = 0 is exactly 0. Arithmetic is fp32, or fp64 for parameters in fp64; the norm is summed over
blocks in fp64. On a GPU, Triton kernels (kernel.py) make the same passes for L1 where they run. ‖BA‖₂² = tr(BᵀB·AAᵀ) needs no
block: both Gram matrices are ``[R, R]``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from paft_plugin.penalty import kernel

# Fastest or level with it for every Llama-3-8B shape on a CPU core (penalty/LOG.md): 1 MiB of fp32 stays in its cache.
BLOCK_ENTRIES = 1 << 18
# A GPU wants few launches: 64 MiB of fp32. Only for what Triton does not run there; chosen without a GPU to measure on.
GPU_BLOCK_ENTRIES = 1 << 24


@dataclass(frozen=True)
class L1Pass:
    """How large a delta is; of this process's part, if the delta is sharded."""

    norm: Tensor  # [] fp64: ‖δ‖₁
    small: Tensor  # [K] int64: entries with |δ| ≤ thresholds[k]


@contextmanager
def ieee_products() -> Iterator[None]:
    """Multiplies fp32 matrices in fp32, whatever training allows itself: TF32 or bf16 would lose the signs of small entries."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    allowed = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, allowed, strict=True):
            backend.fp32_precision = precision


@ieee_products()
def measure_product(A: Tensor, B: Tensor, scale: float, thresholds: Sequence[float] = ()) -> L1Pass:
    """‖s·BA‖₁ of a low-rank delta, and how many of its entries are small.

    Args:
        A: ``[R, I]``, any float dtype.
        B: ``[O, R]``, any float dtype.
        scale: s, the adapter's scaling.
        thresholds: K sparsity thresholds on ``|s·BA|``.
    """
    size, limits = abs(scale), unscaled(thresholds, scale)
    if _kernel_takes(A, B):
        norm, small = kernel.measure_product(A, B, limits)
        return L1Pass(norm * size, small)
    count = Count(A.device, limits)
    for block in product_blocks(A, B):
        count.add(block.abs_())
    return L1Pass(count.norm * size, count.small)


@ieee_products()
def subgradient_of_product(A: Tensor, B: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Subgradient of ‖s·BA‖₁: ``|s|·Bᵀ sign(BA)``, ``[R, I]``, and ``|s|·sign(BA) Aᵀ``, ``[O, R]``, both at least fp32.

    Source: L = L_sft + λ‖δ_sft‖₁ of arXiv 2406.17923; that it falls on the product is our choice.
    """
    size = abs(scale)
    if _kernel_takes(A, B):
        grad_A, grad_B = kernel.subgradient_of_product(A, B)
        return grad_A.mul_(size), grad_B.mul_(size)
    A = widened(A)
    grad_A = torch.zeros_like(A)
    grad_B = torch.empty(B.shape, dtype=A.dtype, device=B.device)
    for rows in _blocks(B.shape[0], A.shape[1], A.device):
        B_rows = widened(B[rows])
        signs = (B_rows @ A).sign_()  # [rows, I]
        grad_A.addmm_(B_rows.T, signs)
        torch.mm(signs, A.T, out=grad_B[rows])
    return grad_A.mul_(size), grad_B.mul_(size)


def square_of_product(A: Tensor, B: Tensor, scale: float) -> Tensor:
    """‖s·BA‖₂² of a low-rank delta, ``[]`` fp64; `A` is ``[R, I]``, `B` ``[O, R]``."""
    A, B = A.detach().double(), B.detach().double()
    return scale**2 * (B.T @ B).mul(A @ A.T).sum()


@ieee_products()
def gradient_of_product(A: Tensor, B: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Gradient of ‖s·BA‖₂²: ``2s²·BᵀBA``, ``[R, I]``, and ``2s²·BAAᵀ``, ``[O, R]``, both at least fp32."""
    A, B = widened(A), widened(B)
    return (B.T @ B @ A).mul_(2 * scale**2), (B @ (A @ A.T)).mul_(2 * scale**2)


def measure_difference(parameter: Tensor, reference: Tensor | None, thresholds: Sequence[float] = ()) -> L1Pass:
    """‖θ − θ_pre‖₁ of a parameter that is trained itself, and how many entries of θ − θ_pre are small.

    Args:
        parameter: θ, any shape and float dtype.
        reference: θ_pre in the same shape, on any device, or None for θ_pre = 0 (the L1 norm of a factor).
        thresholds: K sparsity thresholds on ``|θ − θ_pre|``.
    """
    order = memory_order(parameter)
    if _kernel_subtracts(parameter, reference):
        flat_reference = None if reference is None else flattened(reference, order)
        return L1Pass(*kernel.measure_difference(flattened(parameter, order), flat_reference, thresholds))
    count = Count(parameter.device, thresholds)
    for _, delta in difference_blocks(parameter, reference, order):
        count.add(delta.abs_())
    return L1Pass(count.norm, count.small)


def add_subgradient_of_difference(
    parameter: Tensor, reference: Tensor | None, gradient: Tensor, strength: float
) -> None:
    """Add ``strength · sign(θ − θ_pre)`` into `gradient`, which has θ's shape, in its own dtype."""
    if _kernel_subtracts(parameter, reference) and kernel.available(gradient):
        order = memory_order(gradient)
        flat = gradient.permute(tuple(order)).view(-1)
        flat_reference = None if reference is None else flattened(reference, order)
        kernel.add_subgradient_of_difference(flattened(parameter, order), flat_reference, flat, strength)
        return
    add_difference(parameter, reference, gradient, strength, Tensor.sign_)


def square_of_difference(parameter: Tensor, reference: Tensor | None) -> Tensor:
    """‖θ − θ_pre‖₂², ``[]`` fp64; θ_pre = 0 if there is none."""
    square = torch.zeros((), dtype=torch.float64, device=parameter.device)
    for _, delta in difference_blocks(parameter, reference, memory_order(parameter)):
        square += delta.dot(delta)
    return square


def add_gradient_of_difference(parameter: Tensor, reference: Tensor | None, gradient: Tensor, strength: float) -> None:
    """Add ``strength · 2(θ − θ_pre)`` into `gradient`, which has θ's shape, in its own dtype."""
    add_difference(parameter, reference, gradient, 2 * strength, lambda delta: delta)


def add_difference(
    parameter: Tensor, reference: Tensor | None, gradient: Tensor, strength: float, of: Callable[[Tensor], Tensor]
) -> None:
    """Add ``strength · of(θ − θ_pre)`` into `gradient`, a block at a time; `of` may overwrite the block that it gets."""
    order = memory_order(gradient)
    flat = gradient.permute(tuple(order)).view(-1)
    for block, delta in difference_blocks(parameter, reference, order):
        flat[block].add_(of(delta), alpha=strength)


def product_blocks(A: Tensor, B: Tensor) -> Iterator[Tensor]:
    """BA, a few rows at a time, ``[rows, I]``: each a new tensor, whose products are exact within `ieee_products`."""
    A = widened(A)
    for rows in _blocks(B.shape[0], A.shape[1], A.device):
        yield widened(B[rows]) @ A


def unscaled(thresholds: Sequence[float], scale: float) -> list[float]:
    """What |BA| must not exceed for |s·BA| to be within each threshold."""
    # A scale of 0 makes every entry 0, which no division by it can express.
    return [threshold / abs(scale) if scale else float("inf") for threshold in thresholds]


def difference_blocks(
    parameter: Tensor, reference: Tensor | None, order: Sequence[int]
) -> Iterator[tuple[slice, Tensor]]:
    """θ − θ_pre, a block of the tensor flattened in `order` at a time: a copy that the caller may overwrite.

    A reference on another device is fetched block by block.
    """
    flat = flattened(parameter.detach(), order)
    flat_reference = None if reference is None else flattened(reference.detach(), order)
    for block in _blocks(flat.numel(), 1, flat.device):
        delta = flat[block].to(_working_dtype(flat), copy=True)
        if flat_reference is not None:
            delta -= flat_reference[block].to(delta.device, non_blocking=True)
        yield block, delta


def memory_order(tensor: Tensor) -> list[int]:
    """The dimensions in the order in which they lie in memory; permuted so, a dense tensor can be viewed as flat."""
    strides = tensor.stride()
    return sorted(range(tensor.dim()), key=lambda dim: -strides[dim])


def flattened(tensor: Tensor, order: Sequence[int]) -> Tensor:
    """The entries with the dimensions in `order`: a view where the tensor lies in memory that way, else a copy."""
    return tensor.permute(tuple(order)).reshape(-1)


def _working_dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def widened(tensor: Tensor) -> Tensor:
    """The tensor without its graph, in fp32 or wider."""
    return tensor.detach().to(_working_dtype(tensor))


class Count:
    """Sums blocks of magnitudes, without waiting for a GPU."""

    def __init__(self, device: torch.device, limits: Sequence[float]) -> None:
        self.norm = torch.zeros((), dtype=torch.float64, device=device)
        self.small = torch.zeros(len(limits), dtype=torch.int64, device=device)
        self._limits = limits

    def add(self, magnitudes: Tensor) -> None:
        self.norm += magnitudes.sum()
        for k, limit in enumerate(self._limits):
            # As fp32 ones: five times faster to sum on a CPU than booleans, and exact up to 2^24 of them.
            self.small[k] += torch.le(magnitudes, limit, out=torch.empty_like(magnitudes)).sum().long()


def _kernel_takes(A: Tensor, B: Tensor) -> bool:
    return kernel.available(A, A.shape[0]) and kernel.available(B, A.shape[0]) and kernel.runs_on(A.device)


def _kernel_subtracts(parameter: Tensor, reference: Tensor | None) -> bool:
    if not kernel.available(parameter) or not kernel.runs_on(parameter.device):
        return False
    return reference is None or (reference.device == parameter.device and kernel.available(reference))


def _blocks(rows: int, columns: int, device: torch.device) -> Iterator[slice]:
    entries = BLOCK_ENTRIES if device.type == "cpu" else GPU_BLOCK_ENTRIES
    step = max(1, entries // max(1, columns))
    return (slice(start, start + step) for start in range(0, rows, step))
