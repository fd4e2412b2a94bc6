"""‖δ‖₁ of one delta on a GPU: norm, sparsity counts and subgradient, as Triton kernels.

Shape letters: `O` rows of δ, `I` columns of δ, `R` rank, `K` limits. Nothing of size O × I is ever stored: a program builds the
tiles of BA that it needs and forgets them. Arithmetic is fp32 and the dots are exact ("ieee"), because the sign of an entry near
zero must be that of the fp32 product, which TF32 would lose. Every program writes its own partial sums (together some tens of MiB
at most, or one gradient's size), which torch adds up, and the grid depends on shapes alone: two runs agree bit for bit. The scale
s is the caller's business, so limits are on ``|BA|``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

logger = logging.getLogger(__name__)

MAX_RANK = 256
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# None of these sizes has been timed on a GPU yet. The sides are the largest powers of two at which ptxas keeps what a thread
# works on in its registers, on sm_80 and on sm_90 (tests/penalty/test_kernel.py).
TILE_SIDES = {16: 64, 32: 32, 64: 32, 128: 32, 256: 16}  # padded rank: rows and columns of a tile of BA
TARGET_PROGRAMS = 1024  # two waves on an H100; blocks of rows alone would leave it idle on a layer of 1024 rows
BLOCK_ENTRIES = 4096  # entries of θ that one program takes
LAUNCH = {"num_warps": 4, "num_stages": 2, "enable_fp_fusion": True}

# Whether Triton interprets a kernel is settled when the kernel is defined.
INTERPRETED = triton is not None and bool(triton.knobs.runtime.interpret)
_jit: Any = triton.jit if triton is not None else lambda function: function


def available(tensor: Tensor, rank: int = 1) -> bool:
    """Whether the kernels take this tensor, as a factor of this rank if it is one: 1 ≤ R ≤ ``MAX_RANK``."""
    if triton is None or tensor.dtype not in DTYPES or not 1 <= rank <= MAX_RANK:
        return False
    if tensor.is_cuda:
        # What Triton supports; it has an AMD backend too, for which these kernels were never compiled.
        return torch.version.hip is None and torch.cuda.get_device_capability(tensor.device) >= (8, 0)
    return INTERPRETED and tensor.device.type == "cpu"


@cache
def runs_on(device: torch.device) -> bool:
    """Whether the kernels run on `device` and agree with torch, tried once on a small problem.

    Triton compiles at the first launch, which may fail where there is no compiler; training goes on without it, with a warning.
    """
    A = torch.linspace(-1, 1, 16 * 70, device=device).view(16, 70)
    B = torch.linspace(2, -1, 80 * 16, device=device).view(80, 16)
    delta = B.double() @ A.double()
    try:
        norm, _ = measure_product(A, B, ())
        grad_A, grad_B = subgradient_of_product(A, B)
    except Exception as error:  # whatever Triton, a driver or a compiler raises
        logger.warning(
            "The Triton kernels of the L1 penalty don't run on %s; torch does it, more slowly: %s", device, error
        )
        return False
    right = torch.allclose(norm, delta.abs().sum(), rtol=1e-5)
    right &= torch.allclose(grad_A.double(), B.double().T @ delta.sign(), atol=1e-3)
    right &= torch.allclose(grad_B.double(), delta.sign() @ A.double().T, atol=1e-3)
    if not right:
        logger.warning(
            "The Triton kernels of the L1 penalty give wrong results on %s; torch does it, more slowly.", device
        )
    return right


def measure_product(A: Tensor, B: Tensor, limits: Sequence[float]) -> tuple[Tensor, Tensor]:
    """‖BA‖₁ and how many entries are small.

    Args:
        A: ``[R, I]``, any of ``DTYPES``, any strides.
        B: ``[O, R]``, any of ``DTYPES``, any strides.
        limits: K bounds on ``|BA|``, may hold ``inf``.

    Returns:
        norm ``[]`` fp64 and small ``[K]`` int64, the entries with ``|BA| ≤ limits[k]``.
    """
    norms, smalls = _partial_measures(A, _chunks(A, B), B.shape[0], len(limits))
    _launch_over_product(A, B, limits, None, norms, smalls)
    return _total(norms, smalls)


def subgradient_of_product(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Subgradient of ‖BA‖₁: Bᵀ sign(BA), ``[R, I]``, and sign(BA) Aᵀ, ``[O, R]``, both fp32; arguments as `measure_product`."""
    # (BA)ᵀ = AᵀBᵀ: the gradient of A is that of the left factor of the transposed product.
    grads_A = A.new_empty((_chunks(B.T, A.T), *A.shape), dtype=torch.float32)
    _launch_over_product(B.T, A.T, (), grads_A.mT, None, None)
    grads_B = A.new_empty((_chunks(A, B), *B.shape), dtype=torch.float32)
    _launch_over_product(A, B, (), grads_B, None, None)
    return grads_A.sum(0), grads_B.sum(0)


def measure_difference(parameter: Tensor, reference: Tensor | None, limits: Sequence[float]) -> tuple[Tensor, Tensor]:
    """‖θ − θ_pre‖₁ and how many entries are small.

    Args:
        parameter: θ, any shape, any of ``DTYPES``.
        reference: θ_pre in the same shape and on the same device, any of ``DTYPES``, or None for θ_pre = 0.
        limits: K bounds on ``|θ − θ_pre|``, may hold ``inf``.

    Returns:
        norm ``[]`` fp64 and small ``[K]`` int64, the entries with ``|θ − θ_pre| ≤ limits[k]``.
    """
    return _pass_over_difference(parameter, reference, limits, None, 0.0)


def add_subgradient_of_difference(
    parameter: Tensor, reference: Tensor | None, gradient: Tensor, strength: float
) -> None:
    """Add strength × sign(θ − θ_pre) into a contiguous gradient in θ's shape; arguments as `measure_difference`."""
    _pass_over_difference(parameter, reference, (), gradient.view(-1), strength)


def _tile(rank: int) -> tuple[int, int]:
    """Padded rank and side of a tile."""
    padded = max(16, triton.next_power_of_2(rank))
    return padded, TILE_SIDES[padded]


def _chunks(A: Tensor, B: Tensor) -> int:
    """In how many chunks the columns of BA are worked on side by side: enough to keep a GPU busy when rows are few."""
    side = _tile(A.shape[0])[1]
    row_blocks, column_blocks = triton.cdiv(B.shape[0], side), triton.cdiv(A.shape[1], side)
    return max(1, min(column_blocks, triton.cdiv(TARGET_PROGRAMS, max(1, row_blocks))))


def _partial_measures(like: Tensor, chunks: int, rows: int, K: int) -> tuple[Tensor, Tensor]:
    """norms ``[chunks, O]`` fp32 and smalls ``[chunks, O, K]`` int32, to be filled by a kernel."""
    return (
        like.new_empty((chunks, rows), dtype=torch.float32),
        like.new_empty((chunks, rows, K), dtype=torch.int32),
    )


def _total(norms: Tensor, smalls: Tensor) -> tuple[Tensor, Tensor]:
    """norm ``[]`` fp64 and small ``[K]`` int64 from the programs' partial sums."""
    return norms.sum(dtype=torch.float64), smalls.sum((0, 1), dtype=torch.int64)


def _launch_over_product(
    A: Tensor, B: Tensor, limits: Sequence[float], grads: Tensor | None, norms: Tensor | None, smalls: Tensor | None
) -> None:
    """Fills grads ``[chunks, O, R]`` and the measures; None for what is not wanted."""
    (rank, columns), rows = A.shape, B.shape[0]
    padded_rank, side = _tile(rank)
    chunks = _chunks(A, B)
    strides = (*A.stride(), *B.stride(), *((0, 0, 0) if grads is None else grads.stride()))
    blocks_per_chunk = triton.cdiv(triton.cdiv(columns, side), chunks)
    sizes = {"K": len(limits), "PADDED_K": triton.next_power_of_2(max(1, len(limits)))}
    with torch.cuda.device_of(A):
        _product_kernel[(triton.cdiv(rows, side), chunks)](
            *(A.detach(), B.detach(), grads, norms, smalls, tuple(map(float, limits))),
            *(rows, columns, rank, *strides, blocks_per_chunk),
            **sizes,
            PADDED_RANK=padded_rank,
            SIDE=side,
            **LAUNCH,
        )


def _pass_over_difference(
    parameter: Tensor, reference: Tensor | None, limits: Sequence[float], gradient: Tensor | None, strength: float
) -> tuple[Tensor, Tensor]:
    flat = parameter.detach().reshape(-1)
    flat_reference = None if reference is None else reference.detach().reshape(-1)
    programs = triton.cdiv(flat.numel(), BLOCK_ENTRIES)
    norms, smalls = _partial_measures(flat, 1, programs, len(limits))
    with torch.cuda.device_of(flat):
        _difference_kernel[(programs,)](
            *(flat, flat_reference, gradient, norms, smalls, tuple(map(float, limits))),
            *(flat.numel(), float(strength)),
            K=len(limits),
            BLOCK=BLOCK_ENTRIES,
            **LAUNCH,
        )
    return _total(norms, smalls)


@_jit
def _product_kernel(
    A: tl.tensor,  # [R, I]
    B: tl.tensor,  # [O, R]
    grads: tl.tensor,  # [chunks, O, R] fp32 or None
    norms: tl.tensor,  # [chunks, O] fp32 or None
    smalls: tl.tensor,  # [chunks, O, K] int32, read with norms
    limits: tl.tuple,  # K floats
    rows: tl.tensor,
    columns: tl.tensor,
    rank: tl.tensor,
    A_rank: tl.tensor,
    A_column: tl.tensor,
    B_row: tl.tensor,
    B_rank: tl.tensor,
    grads_chunk: tl.tensor,
    grads_row: tl.tensor,
    grads_rank: tl.tensor,
    blocks_per_chunk: tl.tensor,
    K: tl.constexpr,
    PADDED_K: tl.constexpr,
    PADDED_RANK: tl.constexpr,
    SIDE: tl.constexpr,
) -> None:
    """One block of rows of BA, one chunk of its columns: each row's sign(BA) Aᵀ, sum of ``|BA|`` and counts of small entries."""
    row = (tl.program_id(0) * SIDE + tl.arange(0, SIDE)).to(tl.int64)
    r = tl.arange(0, PADDED_RANK).to(tl.int64)
    k = tl.arange(0, PADDED_K)
    in_B = (row < rows)[:, None] & (r < rank)[None, :]
    B_tile = tl.load(B + row[:, None] * B_row + r[None, :] * B_rank, mask=in_B, other=0.0).to(tl.float32)
    grad = tl.zeros([SIDE, PADDED_RANK], tl.float32)
    norm = tl.zeros([SIDE], tl.float32)
    small = tl.zeros([SIDE, PADDED_K], tl.int32)
    chunk = tl.program_id(1).to(tl.int64)
    first = tl.program_id(1) * blocks_per_chunk
    for block in range(first, tl.minimum(first + blocks_per_chunk, tl.cdiv(columns, SIDE))):
        column = (block * SIDE + tl.arange(0, SIDE)).to(tl.int64)
        in_A = (r < rank)[:, None] & (column < columns)[None, :]
        A_tile = tl.load(A + r[:, None] * A_rank + column[None, :] * A_column, mask=in_A, other=0.0).to(tl.float32)
        delta = tl.dot(B_tile, A_tile, input_precision="ieee")  # [SIDE, SIDE]
        if grads is not None:
            sign = (delta > 0).to(tl.float32) - (delta < 0).to(tl.float32)
            grad = tl.dot(sign, tl.trans(A_tile), grad, input_precision="ieee")
        if norms is not None:
            magnitude = tl.abs(delta)
            norm += tl.sum(magnitude, axis=1)
            for i in tl.static_range(K):
                within = (magnitude <= limits[i]) & (column < columns)[None, :]
                small += tl.where(k[None, :] == i, tl.sum(within.to(tl.int32), axis=1)[:, None], 0)
    if grads is not None:
        tl.store(grads + chunk * grads_chunk + row[:, None] * grads_row + r[None, :] * grads_rank, grad, mask=in_B)
    if norms is not None:
        at = chunk * rows + row
        tl.store(norms + at, norm, mask=row < rows)
        tl.store(smalls + (at[:, None] * K + k[None, :]), small, mask=(row < rows)[:, None] & (k < K)[None, :])


@_jit
def _difference_kernel(
    parameter: tl.tensor,  # [numel]
    reference: tl.tensor,  # [numel] or None
    gradient: tl.tensor,  # [numel] or None
    norms: tl.tensor,  # [programs] fp32
    smalls: tl.tensor,  # [programs, K] int32
    limits: tl.tuple,  # K floats
    numel: tl.tensor,
    strength: tl.tensor,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One block of θ − θ_pre: its sum of magnitudes and counts of small entries; the gradient gets strength × its sign."""
    program = tl.program_id(0).to(tl.int64)
    entry = program * BLOCK + tl.arange(0, BLOCK)
    inside = entry < numel
    delta = tl.load(parameter + entry, mask=inside, other=0.0).to(tl.float32)
    if reference is not None:
        delta -= tl.load(reference + entry, mask=inside, other=0.0).to(tl.float32)
    if gradient is not None:
        sign = (delta > 0).to(tl.float32) - (delta < 0).to(tl.float32)
        old = tl.load(gradient + entry, mask=inside, other=0.0)
        tl.store(gradient + entry, (old.to(tl.float32) + strength * sign).to(old.dtype), mask=inside)
    magnitude = tl.abs(delta)
    tl.store(norms + program, tl.sum(magnitude))
    for i in tl.static_range(K):
        tl.store(smalls + program * K + i, tl.sum(((magnitude <= limits[i]) & inside).to(tl.int32)))
