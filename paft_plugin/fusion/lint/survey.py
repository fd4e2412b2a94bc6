"""What the branches' deltas hold, tensor by tensor: one pass, of which the checks take what they need.

Of a large tensor a fixed random sample of entries is looked at (with replacement, seeded by its name), so shares are
accurate to about 0.4 %; whether it is finite is looked at in full. Memory is that of one tensor of each branch.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from mergekit.config import ConfigReader, InputSliceDefinition, OutputSliceDefinition
from mergekit.merge_methods.generalized_task_arithmetic import GeneralizedTaskArithmeticMerge
from mergekit.parameter_resolver import resolve_parameters
from mergekit.sparsify import SparsificationMethod
from torch import Tensor

from paft_plugin.fusion.lint.recipe import SoundRecipe

SAMPLE = 1 << 16
"""Entries of one tensor that are looked at."""
NARROW = {"bfloat16": torch.bfloat16, "float16": torch.float16}
"""Dtypes in which base + δ loses much of a small delta."""


@dataclass(frozen=True)
class Look:
    """One tensor of one branch's delta."""

    nonzero: float
    """Share of its entries that are not exactly 0."""
    finite: bool
    square: float
    """Sum of squares, scaled up from the sample."""
    absolute: float
    """L1 norm, scaled up from the sample."""
    below: float
    """The part of it in entries that RAM's epsilon takes for unchanged."""
    lost: float
    """Sum of squares of what rounding base + δ to the recipe's dtype loses of δ, scaled up from the sample."""
    parameters: dict[str, Any]
    """The method's parameters of this branch, as mergekit resolves them for this tensor."""


@dataclass(frozen=True)
class TensorFacts:
    """One tensor of the base, and what the branches do to it."""

    name: str
    entries: int
    looks: dict[int, Look]
    """By position among the branches."""
    shared: dict[str, Any]
    """The method's parameters for all branches, as mergekit resolves them for this tensor."""
    alone: float
    """Of the sampled entries that some branch still changes after trimming, how many one branch alone does."""
    changed: float
    """Entries that some branch still changes after trimming, scaled up from the sample."""
    dots: dict[tuple[int, int], float]
    """Inner products of two branches' deltas, scaled up from the sample."""


def survey(recipe: SoundRecipe) -> Iterator[TensorFacts]:
    """Look at every tensor that a branch changes."""
    deltas, base = recipe.deltas, recipe.base
    if not deltas or base is None:
        return
    names = sorted({name for delta in deltas.values() for name in delta.names})
    layers = 1 + max((_layer(name) for name in base.names), default=0)
    for name in names:
        shared, own = _resolved(recipe, name, _layer(name) / max(1, layers - 1))
        yield _look_at(recipe, name, shared, own)


def _finite_where(base: Tensor, change: Tensor) -> bool:
    """Whether a change is finite wherever the base is."""
    return bool((change.isfinite() | ~base.isfinite()).all())


def _look_at(recipe: SoundRecipe, name: str, shared: dict[str, Any], own: dict[int, dict[str, Any]]) -> TensorFacts:
    assert recipe.base is not None
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    entries = math.prod(recipe.base.shape(name))
    chosen = torch.randint(entries, (SAMPLE,), generator=generator) if entries > SAMPLE else None
    factor = entries / SAMPLE if chosen is not None else 1.0
    dtype = NARROW.get(recipe.config.dtype or "")
    # What rounding loses is all that the base's own entries are needed for.
    weights = None if dtype is None else recipe.base.tensor(name).flatten()
    sampled_weights = None if weights is None else (weights if chosen is None else weights[chosen]).float()
    samples: dict[int, Tensor] = {}
    looks = {}
    for index, delta in recipe.deltas.items():
        change = delta.one(name).flatten() if name in delta.names else torch.zeros(entries)
        # A sum is a third of the work, and finite only if all of it is.
        finite = bool(torch.isfinite(change.sum())) or _finite_where(recipe.base.tensor(name).flatten(), change)
        sample = change if chosen is None else change[chosen]
        sample = torch.nan_to_num(sample, nan=0.0, posinf=0.0, neginf=0.0)
        samples[index] = sample
        lost = 0.0
        if dtype is not None and sampled_weights is not None:
            rounded = (sampled_weights + sample).to(dtype).float() - sampled_weights.to(dtype).float()
            lost = float((rounded - sample).double().square().sum()) * factor
        below = sample.abs() <= shared.get("epsilon", 0.0)
        looks[index] = Look(
            nonzero=float(torch.count_nonzero(sample)) / max(1, sample.numel()),
            finite=finite,
            square=float(sample.double().square().sum()) * factor,
            absolute=float(sample.double().abs().sum()) * factor,
            below=float(sample.double().abs()[below].sum()) * factor,
            lost=lost,
            parameters=own.get(index, {}),
        )
    kept = torch.stack([_kept(recipe, samples[index], own.get(index, {}), generator) for index in samples])
    counts = kept.sum(dim=0)
    changed = int((counts > 0).sum())
    dots = {
        (one, other): float(samples[one].double() @ samples[other].double()) * factor
        for one in samples
        for other in samples
        if one < other
    }
    alone = int((counts == 1).sum()) / changed if changed else 0.0
    return TensorFacts(name, entries, looks, shared, alone, changed * factor, dots)


def _kept(recipe: SoundRecipe, sample: Tensor, parameters: dict[str, Any], generator: torch.Generator) -> Tensor:
    """Which entries of a sample the method leaves: the largest, or some by chance, of those that are not 0."""
    density = float(parameters.get("density", 1.0))
    method = recipe.method
    how = method.sparsification_method if isinstance(method, GeneralizedTaskArithmeticMerge) else None
    kept = sample != 0
    if how is None or density >= 1 or sample.numel() == 0:
        return kept
    if how in (SparsificationMethod.random, SparsificationMethod.della_magprune):
        return kept & (torch.rand(sample.shape, generator=generator) < density)
    rank = sample.numel() - max(1, int(density * sample.numel())) + 1
    return kept & (sample.abs() >= sample.abs().kthvalue(rank).values)


def _layer(name: str) -> int:
    match = re.search(r"\.(\d+)\.", name)
    return int(match[1]) if match else 0


def _resolved(recipe: SoundRecipe, name: str, t: float) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
    """mergekit's own answer to which parameters a tensor gets: shared ones, and those of each branch by position."""
    group = recipe.groups[0]
    sources = [
        InputSliceDefinition(model=entry.reference, layer_range=(0, 1), parameters=entry.parameters[1] or None)
        for entry in group.entries
    ]
    reader = ConfigReader(config=recipe.config, t=t, slice_out=OutputSliceDefinition(sources=sources))
    shared, per_input = resolve_parameters(
        recipe.spec,
        tensor_name=name,
        inputs={entry.reference: name for entry in group.entries},
        sources=reader.parameter_sources,
        base_model=group.base,
        t=t,
    )
    return shared, {index: per_input.get(entry.reference, {}) for index, entry in enumerate(group.branches)}
