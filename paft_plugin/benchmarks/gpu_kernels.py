"""The Triton kernels of the penalty against the same passes in torch: in all dtypes, odd shapes, and how long either takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import cycle, product
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from paft_plugin.benchmarks.harness import BenchmarkRow, Figure, figure, quotients
from paft_plugin.benchmarks.penalty import now, ours_without_measure, random_factors
from paft_plugin.penalty import kernel, l1

DTYPES = kernel.DTYPES
Shape = tuple[int, int, int]
"""Rows, rank and columns."""
ODD_SHAPES: tuple[Shape, ...] = ((1, 1, 1), (7, 3, 5), (65, 16, 129), (130, 1, 64), (33, 64, 70), (40, 200, 17))


def compare_kernels(
    device: str, shapes: Sequence[Shape], layer_set: Sequence[tuple[int, int]], repeats: int
) -> BenchmarkRow:
    """What the kernels give and what torch does, and how long either takes.

    Args:
        device: torch's name of it.
        shapes: Rows, rank and columns of the products that are compared.
        layer_set: Shapes (out, in) of the linear maps that the subgradient is timed on.
        repeats: How often.
    """
    if not kernel.available(torch.ones(1, device=device)) or not kernel.runs_on(torch.device(device)):
        raise RuntimeError(f"the kernels do not run on {device}")
    worst = {"norm": 0.0, "gradient, random sums": 0.0}
    differing = {"other counts": 0, "other gradients, exact sums": 0, "other gradients, θ − θ_pre": 0}
    for (rows, rank, columns), one, other in _cases(shapes):
        for exact in (True, False):
            A, B = _factors(rows, rank, columns, exact, device)
            ours, theirs = _both_ways(partial(_product, A.to(one), B.to(other)))
            norms, counts, gradients = zip(ours, theirs, strict=True)
            worst["norm"] = max(worst["norm"], _relative(norms[0], norms[1]))
            if exact:
                differing["other counts"] += int((counts[0] != counts[1]).sum())
                differing["other gradients, exact sums"] += sum(
                    int((x != y).sum()) for x, y in zip(*gradients, strict=True)
                )
            else:
                errors = [_relative(x, y) for x, y in zip(*gradients, strict=True)]
                worst["gradient, random sums"] = max(worst["gradient, random sums"], *errors)
    for parameter, reference, gradient in product(DTYPES, (*DTYPES, None), DTYPES):
        ours, theirs = _both_ways(partial(_difference, device, parameter, reference, gradient))
        worst["norm"] = max(worst["norm"], _relative(ours[0], theirs[0]))
        differing["other counts"] += int((ours[1] != theirs[1]).sum())
        differing["other gradients, θ − θ_pre"] += int((ours[2] != theirs[2]).sum())
    return BenchmarkRow(
        "kernels",
        [
            *(Figure(what, count, "", at_most=0) for what, count in differing.items()),
            Figure("largest error of a norm", worst["norm"], "", at_most=1e-6),
            Figure("gradient error, random sums", worst["gradient, random sums"], "", at_most=1e-3),
            *_kernel_times(device, layer_set, repeats),
        ],
        note=f"{len(shapes)} shapes, all pairs of {len(DTYPES)} dtypes, against the torch pass on the same device; "
        "timed: subgradient of one decoder layer of Llama-3-8B, r = 16, fp32",
    )


def _cases(shapes: Sequence[Shape]) -> Iterator[tuple[Shape, torch.dtype, torch.dtype]]:
    """Every shape in fp32, and every pair of dtypes; not all with all, since each is compiled anew (half a second)."""
    yield from ((shape, torch.float32, torch.float32) for shape in shapes)
    for shape, (one, other) in zip(cycle(shapes), product(DTYPES, DTYPES), strict=False):
        yield shape, one, other


def _factors(rows: int, rank: int, columns: int, exact: bool, device: str) -> tuple[Tensor, Tensor]:
    """A ``[R, I]`` and B ``[O, R]``; if `exact` of so few bits that whatever order they are summed in gives the same."""
    draw = torch.Generator().manual_seed(rows + rank + columns)
    shapes = ((rank, columns), (rows, rank))
    if exact:
        A, B = (torch.randint(-3, 4, shape, generator=draw) / 8 for shape in shapes)
    else:
        A, B = (torch.randn(shape, generator=draw) for shape in shapes)
    return A.to(device), B.to(device)


def _product(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    measured = l1.measure_product(A, B, 2.0, (0.0, 0.5))
    return measured.norm, measured.small, l1.subgradient_of_product(A, B, 2.0)


def _difference(
    device: str, parameter: torch.dtype, reference: torch.dtype | None, gradient: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    base, moved, into = (torch.randn(3, kernel.BLOCK_ENTRIES // 2 + 1, generator=draw) for _ in range(3))
    # The interpreter truncates to bf16 where a GPU rounds to nearest, so there the sums must be exact.
    into, strength = (into.round() / 8, 0.125) if kernel.INTERPRETED else (into, 0.01)
    theta, target = moved.to(device, parameter), into.to(device, gradient)
    theta_pre = None if reference is None else torch.where(base > 0, moved, base).to(device, reference)
    measured = l1.measure_difference(theta, theta_pre, (0.0, 0.5))
    l1.add_subgradient_of_difference(theta, theta_pre, target, strength)
    return measured.norm, measured.small, target


def _both_ways(work: Callable[[], Any]) -> tuple[Any, Any]:
    """What `work` gives with the kernels and without."""
    ours = work()
    with without_kernels():
        return ours, work()


def without_kernels() -> AbstractContextManager[object]:
    """Within it, torch makes the passes over δ."""
    return patch.object(kernel, "runs_on", lambda _: False)


def _relative(one: Tensor, other: Tensor) -> float:
    """‖one − other‖ / ‖other‖."""
    length = other.double().norm().item()
    return (one.double() - other.double()).norm().item() / (length or 1.0)


def _kernel_times(device: str, layer_set: Sequence[tuple[int, int]], repeats: int) -> list[Figure]:
    factors = [(A.to(device), B.to(device)) for A, B in random_factors(layer_set)]
    seconds: dict[str, list[float]] = {"Triton": [], "torch": []}

    def timed(name: str) -> None:
        start = now()
        ours_without_measure(factors)
        seconds[name].append(now() - start)

    for _ in range(1 + repeats):
        timed("Triton")
        with without_kernels():
            timed("torch")
    ours, theirs = (samples[1:] for samples in seconds.values())
    times = [figure("Triton", ours, "s"), figure("torch", theirs, "s")]
    return [*times, figure("torch / Triton", quotients(theirs, ours), "×")]
