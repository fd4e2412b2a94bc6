"""Tensors in blocks that fit the processor's caches, so that no tensor is ever there as a whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from torch import Tensor

from paft_plugin.deltas.changes import Rows
from paft_plugin.inspection.kernels import BLOCK

CHUNK = 1 << 23
"""Entries after which files are opened anew: pages of a file count as this process's memory from their reading to its closing."""


def blocks(shape: tuple[int, ...], *openers: Callable[[], Rows]) -> Iterator[tuple[Tensor, ...]]:
    """The same blocks of several tensors of one shape, in order.

    Each is contiguous, ``(R, last dimension)``, or ``(1, n)`` of a vector.
    """
    height, width = (shape[0], math.prod(shape[1:])) if shape else (1, 1)
    if not height * width:
        return
    step = max(1, BLOCK // width)
    for first in range(0, height, chunk := step * max(1, CHUNK // (step * width))):
        readers = [opener() for opener in openers]
        last = min(first + chunk, height)
        for start in range(first, last, step):
            slabs = [read(start, min(start + step, last)) for read in readers]
            yield from zip(*(_split(slab) for slab in slabs), strict=True)
        # Closed before the next ones are opened, not when they take their place.
        del readers


def _split(slab: Tensor) -> Iterator[Tensor]:
    """Blocks of a slab, which is larger than one where a slice along the first dimension is (an expert)."""
    matrix = slab.reshape(1, -1) if slab.dim() == 1 else slab.reshape(-1, slab.shape[-1])
    yield from matrix.split(max(1, BLOCK // matrix.shape[1]))
