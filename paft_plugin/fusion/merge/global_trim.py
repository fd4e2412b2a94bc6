"""TIES with the trim of its paper (arXiv 2306.01708): the largest entries of a whole delta, not of each tensor as in mergekit.

It is a method of its own, `ties_global`, entered into mergekit's registry of this process: the weighting, election and mean are
mergekit's. Plain `mergekit-yaml` does not know it and stops, rather than trim otherwise than the recipe says.

The threshold is exact, ties included. It is found in two passes over the deltas that keep nothing but counts: of the upper half
of the bits of each magnitude, then of the lower half of those that share their upper half with the threshold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from mergekit.common import ModelReference
from mergekit.merge_methods import GeneralizedTaskArithmeticMerge, get, register, registered_methods
from torch import Tensor

from paft_plugin.deltas.controls import HALF, LOWER, bucket_of
from paft_plugin.errors import PaftError
from paft_plugin.fusion.merge.blocks import BlockedMerge, TrimOfDelta, WholeDelta
from paft_plugin.fusion.recipe.methods import TIES_GLOBAL

if TIES_GLOBAL not in {method.spec.name for method in registered_methods()}:
    ties = get("ties")
    assert isinstance(ties, GeneralizedTaskArithmeticMerge)
    register(replace(ties, method_name=TIES_GLOBAL, method_pretty_name="TIES with a global trim"))


@dataclass
class LargestEntries:
    """The entries of one branch's delta above a threshold, and so many more of those that are equal to it, in order."""

    threshold: float
    equal: int

    def of(self, delta: Tensor, start: int) -> Tensor:
        """A block of the delta without the others."""
        sizes = delta.abs()
        kept = sizes > self.threshold
        if self.equal and self.threshold:
            places = (sizes == self.threshold).flatten().nonzero().flatten()[: self.equal]
            kept.view(-1)[places] = True
            self.equal -= len(places)
        return delta * kept


def largest_of_all(merges: Sequence[BlockedMerge]) -> list[TrimOfDelta]:
    """For each branch, in the recipe's order, what is kept of its whole delta: of all tensors that are merged, zeros included.

    Raises:
        PaftError: A branch's density is not the same for all tensors.
    """
    branches = [model for model in merges[0].merge.model_order if model != merges[0].merge.base_model]
    densities = [_density(merges, model) for model in branches]
    entries = sum(math.prod(merge.shape) for merge in merges)
    counts = [max(1, int(density * entries)) for density in densities]
    upper = _histograms(merges, branches, None)
    places = [_from_top(histogram, count) for histogram, count in zip(upper, counts, strict=True)]
    lower = _histograms(merges, branches, [bucket for bucket, _ in places])
    kept: list[TrimOfDelta] = []
    for density, (bucket, rest), histogram in zip(densities, places, lower, strict=True):
        low, equal = _from_top(histogram, rest)
        bits = torch.tensor(bucket << HALF | low, dtype=torch.int32)
        kept.append(WholeDelta() if density >= 1 else LargestEntries(float(bits.view(torch.float32)), equal))
    return kept


def _density(merges: Sequence[BlockedMerge], model: ModelReference) -> float:
    found = {float(dict(merge.merge.input_parameters[model].items())["density"]) for merge in merges}
    if len(found) == 1:
        return found.pop()
    raise PaftError(
        f"{TIES_GLOBAL}: {model} has several densities ({min(found):g} to {max(found):g}), and one threshold for its whole "
        "delta. Give it one density, or take ties, which trims each tensor by itself."
    )


def _histograms(
    merges: Sequence[BlockedMerge], branches: Sequence[ModelReference], within: Sequence[int] | None
) -> list[Tensor]:
    """For each branch how many entries there are of each upper half; or of each lower half `within` one upper half."""
    found = [torch.zeros(1 << HALF, dtype=torch.int64) for _ in branches]
    for blocked in merges:
        keys, rows = blocked.keys, blocked.rows()
        for start, stop in blocked.blocks():
            base = rows[keys[blocked.merge.base_model]](start, stop)
            for place, model in enumerate(branches):
                delta = rows[keys[model]](start, stop) - base
                bits = delta.abs_().contiguous().view(torch.int32).flatten()
                halves = bits >> HALF if within is None else bits[bits >> HALF == within[place]] & LOWER
                found[place] += torch.bincount(halves, minlength=1 << HALF)
    return found


def _from_top(histogram: Tensor, count: int) -> tuple[int, int]:
    """The bucket that holds the `count`-th greatest entry, and which of its own that is."""
    bucket, rest = bucket_of(histogram.flip(0), count)
    return LOWER - bucket, rest
