"""Reading tensors in blocks that fit the processor's caches, none ever as a whole, and asking the system for them ahead."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from paft_plugin.deltas.changes import Rows
from paft_plugin.deltas.delta import Delta
from paft_plugin.inspection import kernels
from paft_plugin.inspection.kernels import BLOCK, Floats

AHEAD = 1 << 27
"""Entries of tensors that were asked for and are not begun: a quarter of a gigabyte in bf16, of the system's cache only."""
CHUNK = 1 << 23
"""Entries after which files are opened anew: pages of a mapped file count as this process's memory from their reading to its
closing (those that an adapter's copies are taken from; models are read)."""


class ReadAhead:
    """A thread that asks for each tensor in turn, and waits while `AHEAD` entries wait to be begun.

    `names` are in the order in which they are worked on; `deltas` gives those that change a tensor.
    """

    def __init__(self, names: Sequence[str], deltas: Callable[[str], Mapping[str, Delta]]) -> None:
        self._names, self._deltas = names, deltas
        self._begun: set[str] = set()
        self._moved = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="read ahead", daemon=True)

    def release(self, name: str) -> None:
        """Work on a tensor begins: it no longer waits."""
        with self._moved:
            self._begun.add(name)
            self._moved.notify()

    def __enter__(self) -> ReadAhead:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._moved:
            self._stopped = True
            self._moved.notify()
        self._thread.join()

    def _run(self) -> None:
        asked: dict[str, int] = {}

        def may_go_on() -> bool:
            for name in self._begun & asked.keys():
                del asked[name]
            return self._stopped or sum(asked.values()) < AHEAD

        for name in self._names:
            with self._moved:
                self._moved.wait_for(may_go_on)
                if self._stopped:
                    return
                if name in self._begun:
                    continue
            deltas = list(self._deltas(name).values())
            asked[name] = math.prod(deltas[0].base.shape(name))
            for read_ahead in (deltas[0].base.read_ahead, *(delta.read_ahead for delta in deltas)):
                read_ahead(name)


def blocks(shape: tuple[int, ...], *openers: Callable[[], Rows]) -> Iterator[tuple[Tensor, ...]]:
    """The same blocks of several tensors of one shape, in order; the next ones may overwrite them.

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
    if matrix.numel() <= BLOCK:
        yield matrix
    else:
        yield from matrix.split(max(1, BLOCK // matrix.shape[1]))


def changes(name: str, deltas: Sequence[Delta]) -> Iterator[tuple[Floats, list[Floats]]]:
    """Blocks of θ_pre and of each δ of one tensor, both in fp32, as of `blocks`: the base is read once for all deltas."""
    base = deltas[0].base
    whole = [delta.trained(name) is not None for delta in deltas]

    def opener(delta: Delta, is_whole: bool) -> Callable[[], Rows]:
        return lambda: (delta.trained(name) if is_whole else None) or delta.rows(name)

    openers = [opener(delta, is_whole) for delta, is_whole in zip(deltas, whole, strict=True)]
    # The same memory for all blocks: what is asked for anew each time has to be zeroed by the system.
    memory: list[Floats] = [np.empty(0, np.float32) for _ in range(1 + len(deltas))]

    def room(index: int, block: Tensor) -> Floats:
        if memory[index].size < block.numel():
            memory[index] = np.empty(block.numel(), np.float32)
        return memory[index][: block.numel()]

    for before, *others in blocks(base.shape(name), lambda: base.slices(name), *openers):
        old = _widened(before, room(0, before))
        changed = [
            _subtracted(other, old, room(1 + index, other)) if is_whole else other.numpy()
            for index, (other, is_whole) in enumerate(zip(others, whole, strict=True))
        ]
        yield old, changed


def _widened(block: Tensor, into: Floats) -> Floats:
    if block.dtype != torch.bfloat16:
        return block.float().numpy()
    kernels.widen(_bits(block), into.view(np.uint32))
    return into.reshape(block.shape)


def _subtracted(after: Tensor, before: Floats, into: Floats) -> Floats:
    if after.dtype != torch.bfloat16:
        return (after.float() - torch.from_numpy(before)).numpy()
    kernels.subtract(_bits(after), before.reshape(-1), into)
    return into.reshape(before.shape)


def _bits(block: Tensor) -> np.ndarray[tuple[int], np.dtype[np.uint16]]:
    """The bits of a block of bfloat16, as a flat view."""
    return block.reshape(-1).view(torch.int16).numpy().view(np.uint16)
