"""Tensors that no branch touches: for which methods the merged tensor is provably the base's, so that it can be copied.

With every delta exactly 0, methods that add a merged delta to the base give the base: each of them multiplies, masks or
divides zeros by finite numbers. What remains of a random method is what it draws: the stream must go on as after its run.

(One difference is left: where the base holds −0, the sum of −0 and +0 is +0.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mergekit.merge_methods.base import MergeMethod
from mergekit.merge_methods.generalized_task_arithmetic import GeneralizedTaskArithmeticMerge
from mergekit.sparsify import SparsificationMethod

Values = Mapping[str, Any]

HALVES = (torch.bfloat16, torch.float16)
# Of the entries whose draws are skipped, so many at a time: one byte each.
CHUNK = 1 << 22
# Methods that add to the base a combination of the deltas in which nothing is divided by a number that can be 0 …
ADDS_DELTAS = ("sce", "model_stock", "nuslerp")
# … and those where `epsilon` > 0 sees to that.
ADDS_DELTAS_ABOVE = ("ram", "ramplus_tl")


def gives_base(method: MergeMethod, shared: Values, per_branch: Sequence[Values]) -> bool:
    """Whether a method that has a base gives it, bit for bit, if every branch's tensor equals it.

    `shared` are all of the method's shared parameters, `per_branch` those of each input that is not the base.
    """
    every = [value for values in (shared, *per_branch) for value in values.values()]
    if not all(math.isfinite(value) for value in every if isinstance(value, (int, float))):
        return False
    if isinstance(method, GeneralizedTaskArithmeticMerge):
        return all(map(_valid_draw, per_branch))
    if method.spec.name in ADDS_DELTAS_ABOVE:
        return bool(shared["epsilon"] > 0)
    return method.spec.name in ADDS_DELTAS


def gives_input_rounded(
    method: MergeMethod, shared: Values, per_input: Sequence[Values], dtypes: set[torch.dtype]
) -> bool:
    """Whether an average of equal tensors is that tensor again, once it is rounded to the dtype in which it is stored.

    In fp32 the average may be off in its last bits: far less than half a step of bf16 or fp16 from a number on their grid.
    `dtypes` are that of the stored tensor and that of the merged one.
    """
    if len(dtypes) > 1 or not dtypes <= set(HALVES):
        return False
    if method.spec.name == "linear":
        weights = [values["weight"] for values in per_input]
        return bool(shared["normalize"]) and min(weights) >= 0 and 1e-3 < sum(weights) < 1e3
    return method.spec.name == "slerp" and 0 <= shared["t"] <= 1


def skip_draws(method: MergeMethod, per_branch: Sequence[Values], entries: int) -> None:
    """Draw from torch's CPU generator what a method would have drawn for one tensor of `entries` entries."""
    if not draws(method):
        return
    for values in per_branch:
        density = values["density"]
        if density >= 1 or ("epsilon" in values and density <= 0):
            continue
        for start in range(0, entries, CHUNK):
            # One number of the generator for each entry, as a Bernoulli draw takes.
            torch.empty(min(CHUNK, entries - start), dtype=torch.uint8).random_()


def draws(method: MergeMethod) -> bool:
    """Whether what a method gives for one tensor depends on what was drawn before."""
    if isinstance(method, GeneralizedTaskArithmeticMerge):
        return method.sparsification_method in (SparsificationMethod.random, SparsificationMethod.della_magprune)
    return method.spec.name == "arcee_fusion"  # samples large tensors for its threshold


def _valid_draw(values: Values) -> bool:
    """Whether mergekit takes this density and epsilon: it stops at others, and a copy must not hide that."""
    density, epsilon = values.get("density", 1.0), values.get("epsilon", 0.0)
    return bool(density >= 1 or density == 0 or (density > 0 and density + epsilon < 1 and density - epsilon > 0))
