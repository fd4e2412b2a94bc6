"""One tensor merged in blocks of rows: memory that does not grow with the branches, where a method goes entry by entry.

mergekit's method does the work on each block, as on a whole tensor. What it trims depends on a whole tensor, or with
`ties_global` on the whole delta; so that is decided before, branch by branch, and mergekit's trimming functions carry it out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from mergekit.common import ModelReference
from mergekit.io.tasks import LoadTensor
from mergekit.merge_methods import get as method_called
from mergekit.merge_methods.generalized_task_arithmetic import GeneralizedTaskArithmeticMerge
from mergekit.merge_methods.task_adapter import ExecuteMergeMethodTask
from mergekit.sparsify import SparsificationMethod, sparsify
from numpy.typing import NDArray
from torch import Tensor

from paft_plugin.deltas.changes import Rows
from paft_plugin.fusion.merge.loaders import ModelLoader
from paft_plugin.fusion.merge.untouched import draws
from paft_plugin.fusion.mergekit_internals import stored_name, trimming_by

FEW = 2
"""Up to so many branches a tensor is merged as a whole, as mergekit does it."""
BLOCK = 1 << 19
"""Entries of a block, more or less."""
BY_ENTRY = ("linear", "ram")
"""Methods beside the weighted sums of deltas in which an entry of the result depends on the same entry of the inputs alone."""
TRIMMERS = ("magnitude", "magnitude_outliers", "bernoulli", "della_magprune")
"""mergekit's trimming functions, one for each of its ways."""
AT_ONCE = 2
"""Branches whose trims are chosen at the same time, where none are drawn by chance."""
TOO_SMALL = 1e-7
"""Norms below which mergekit does not rescale."""


class TrimOfDelta(Protocol):
    """Which entries of a branch's delta are kept, asked block by block in order."""

    def of(self, delta: Tensor, start: int) -> Tensor:
        """A block of the delta, whose first entry is the tensor's entry `start`, without the others."""


@dataclass(frozen=True)
class WholeDelta:
    """Nothing is trimmed."""

    def of(self, delta: Tensor, start: int) -> Tensor:
        """All of it."""
        return delta


@dataclass(frozen=True)
class MaskedDelta:
    """What one of mergekit's trimming functions chose of a whole tensor."""

    bits: NDArray[np.uint8]
    """Eight entries a byte."""
    factor: Tensor | None
    """What the rest is scaled up by."""

    def of(self, delta: Tensor, start: int) -> Tensor:
        """As `mergekit.sparsify.rescaled_masked_tensor` has it."""
        first, count = start // 8, delta.numel()
        bits = np.unpackbits(self.bits[first : first + -(-count // 8)], count=count)
        masked = delta * torch.from_numpy(bits).view(delta.shape).to(delta.device)
        return masked if self.factor is None else masked * self.factor.to(delta.device)


@dataclass(frozen=True)
class BlockedMerge:
    """The merge of one tensor, with its inputs by rows."""

    merge: ExecuteMergeMethodTask
    shape: tuple[int, ...]
    loads: Mapping[str, tuple[ModelLoader, str, torch.dtype]]
    """mergekit's name of each input → whose tensor it is, its name there, and its dtype in the merge."""

    @property
    def width(self) -> int:
        """Entries of a row; a scalar is one row."""
        return math.prod(self.shape[1:])

    @property
    def step(self) -> int:
        """Rows of a block: their entries begin at a whole byte of a mask."""
        return max(8, BLOCK // max(1, self.width) // 8 * 8)

    @property
    def keys(self) -> dict[ModelReference | None, str]:
        """Model → mergekit's name of its input."""
        return {load.model: key for key, load in self.merge.gather_tensors.arguments().items()}

    def rows(self) -> dict[str, Rows]:
        """Of each input; what they are made of is read here."""
        return {key: _in_dtype(loader.rows(name), dtype) for key, (loader, name, dtype) in self.loads.items()}

    def blocks(self) -> Iterator[tuple[int, int]]:
        """The ranges of rows, in order."""
        rows = self.shape[0] if self.shape else 1
        return ((start, min(start + self.step, rows)) for start in range(0, rows, self.step))

    def run(self, kept: Sequence[TrimOfDelta], device: str) -> Tensor:
        """The merged tensor; `kept` has one for each branch, in mergekit's order."""
        rows, done, width = self.rows(), [], self.width
        for start, stop in self.blocks():
            inputs = {key: of(start, stop).to(device) for key, of in rows.items()}
            with trimming_by(_carrying_out(kept, start * width)):
                merged = self.merge.execute(self.merge.gather_tensors.execute(**inputs))
            done.append(merged.cpu())
        return torch.cat(done).reshape(self.shape)

    def choose(self) -> list[TrimOfDelta]:
        """What the method keeps of each branch, as it would of whole tensors, of which two branches' are in memory at a time."""
        method, base = method_called(self.merge.method_name), self.merge.base_model
        branches = [model for model in self.merge.model_order if model != base]
        how = method.sparsification_method if isinstance(method, GeneralizedTaskArithmeticMerge) else None
        if how is None:
            return [WholeDelta() for _ in branches]
        keys = self.keys
        before, rescale = self._tensor(keys[base]), self.merge.parameters["rescale"]

        def chosen(model: ModelReference) -> TrimOfDelta:
            return self._chosen(keys[model], before, how, dict(self.merge.input_parameters[model].items()), rescale)

        if draws(method):  # one after the other, as mergekit draws
            return list(map(chosen, branches))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(chosen, branches))

    def _chosen(
        self, key: str, base: Tensor, how: SparsificationMethod, given: Mapping[str, Any], rescale: bool
    ) -> TrimOfDelta:
        if given["density"] >= 1:
            return WholeDelta()
        delta = self._tensor(key) - base
        more = {name: given[name] for name in ("gamma", "epsilon") if name in given}
        left = sparsify(delta, density=given["density"], method=how, **more)
        bits = np.packbits((left != 0).flatten().numpy())
        whole, rest = delta.abs().sum(), left.abs().sum()
        return MaskedDelta(bits, whole / rest if rescale and min(whole, rest) >= TOO_SMALL else None)

    def _tensor(self, key: str) -> Tensor:
        loader, name, dtype = self.loads[key]
        return loader.tensor(name).to(dtype)


def blocked(
    merge: ExecuteMergeMethodTask, loads: Mapping[str, LoadTensor], loaders: Mapping[ModelReference, ModelLoader]
) -> BlockedMerge | None:
    """The merge of a tensor for blocks; None where a method needs all of it at once, or a model has it in another form."""
    method = method_called(merge.method_name)
    if not (isinstance(method, GeneralizedTaskArithmeticMerge) or method.spec.name in BY_ENTRY):
        return None
    named = {key: (loaders[load.model], stored_name(load, loaders[load.model]) or "") for key, load in loads.items()}
    if any(not name for _, name in named.values()) or any(load.dtype != "float32" for load in loads.values()):
        return None
    shapes = {loader.store.shape(name) for loader, name in named.values()}
    if len(shapes) != 1 or not all(loader.dtype(name).is_floating_point for loader, name in named.values()):
        return None
    (shape,) = shapes
    return BlockedMerge(merge, tuple(shape), {key: (*each, torch.float32) for key, each in named.items()})


def is_worth_it(blocked: BlockedMerge) -> bool:
    """Whether a tensor is large, and of many branches: the few of a small one may as well be in memory together."""
    many = len(blocked.loads) > FEW + 1
    return many and len(blocked.shape) > 1 and math.prod(blocked.shape) > BLOCK


def _in_dtype(rows: Rows, dtype: torch.dtype) -> Rows:
    return lambda start, stop: rows(start, stop).to(dtype)


def _carrying_out(kept: Sequence[TrimOfDelta], start: int) -> dict[str, Callable[..., Tensor]]:
    """mergekit's trimming functions for one block: each call is for the next branch."""
    following = iter(kept)

    def trim(tensor: Tensor, *_arguments: Any, **_more: Any) -> Tensor:
        return next(following).of(tensor, start)

    return dict.fromkeys(TRIMMERS, trim)
