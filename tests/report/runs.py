"""Small run folders, made on the spot: files as the pipeline writes them, numbers from real tensors where they must fit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from paft_plugin.inspection.inspected import Figures, InspectedDelta, InspectedPair, Inspection, TensorFigures
from paft_plugin.inspection.measures import Election, Histogram, Interference, Measures, Overlap
from paft_plugin.thresholds import threshold_key

MODULES = ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.down_proj")
THRESHOLDS = (1e-5, 1e-3)
DENSITIES = (0.2, 1.0)
EDGES = tuple(-9 + place / 4 for place in range(37))
Tensors = Mapping[tuple[int, str], Tensor]


def random_delta(seed: int, scale: float, sparsity: float, layers: int = 4) -> dict[tuple[int, str], Tensor]:
    """(layer, module) → δ of 64 entries, of which about the share `sparsity` is near 1e-7."""
    generator = torch.Generator().manual_seed(seed)
    delta = {}
    for layer in range(layers):
        for module in MODULES:
            values = torch.randn(8, 8, generator=generator, dtype=torch.float64) * scale
            small = torch.rand(8, 8, generator=generator) < sparsity
            delta[layer, module] = torch.where(small, values.sign() * 1e-7, values)
    return delta


def inspect(deltas: Mapping[str, Tensors], *, with_pairs: bool = True) -> Inspection:
    """What an inspection of these deltas holds, counted the plain way."""
    names = list(deltas)
    pairs = [(one, other) for place, one in enumerate(names) for other in names[place + 1 :]] if with_pairs else []
    return Inspection(
        base="/base",
        base_fingerprint=None,
        thresholds=THRESHOLDS,
        densities=DENSITIES,
        deltas=tuple(
            InspectedDelta(name, "adapter", f"/runs/{name}", _figures(tensors, _measures), _histogram(tensors))
            for name, tensors in deltas.items()
        ),
        pairs=tuple(
            InspectedPair(
                one,
                other,
                _figures(
                    {
                        place: torch.stack([deltas[one][place], deltas[other][place]])
                        for place in deltas[one].keys() & deltas[other].keys()
                    },
                    _interference,
                ),
            )
            for one, other in pairs
        ),
    )


def _figures(tensors: Tensors, measured: Any) -> Figures[Any]:
    def group(chosen: Sequence[tuple[int, str]]) -> Any:
        return measured(torch.cat([tensors[place].flatten(-2) for place in chosen], dim=-1))

    places = sorted(tensors)
    return Figures(
        tensors=tuple(
            TensorFigures(f"model.layers.{layer}.{module}.weight", layer, module, (8, 8), group([(layer, module)]))
            for layer, module in places
        ),
        layers={layer: group([p for p in places if p[0] == layer]) for layer in sorted({p[0] for p in places})},
        modules={module: group([p for p in places if p[1] == module]) for module in sorted({p[1] for p in places})},
        cells={place: group([place]) for place in places},
        total=group(places),
    )


def _measures(delta: Tensor) -> Measures:
    size = delta.abs().flatten()
    ordered = size.sort(descending=True).values
    count, l1, l2 = size.numel(), float(size.sum()), float(size.norm())
    return Measures(
        entries=count,
        zeros=int((size == 0).sum()),
        small={threshold_key(threshold): int((size <= threshold).sum()) for threshold in THRESHOLDS},
        unseen={"bfloat16": int((size <= 1e-4).sum())},
        l1=l1,
        l2=l2,
        largest=float(size.max()),
        base_l2=math.sqrt(count) * 0.02,
        hoyer=(math.sqrt(count) - l1 / l2) / (math.sqrt(count) - 1) if l2 else None,
        gini=0.5 if l2 else None,
        top_1_percent=float(ordered[: max(1, count // 100)].sum()) / l1 if l1 else None,
        top_10_percent=float(ordered[: max(1, count // 10)].sum()) / l1 if l1 else None,
    )


def _interference(both: Tensor) -> Interference:
    one, other = both
    product = one * other
    return Interference(
        entries=one.numel(),
        overlap={threshold_key(threshold): _overlap(one, other, threshold) for threshold in (0.0, *THRESHOLDS)},
        agreeing=float(product.clamp(min=0).sum()),
        opposing=float(-product.clamp(max=0).sum()),
        squares=(float(one.square().sum()), float(other.square().sum())),
        ties={threshold_key(density): _election(one, other, density) for density in DENSITIES},
        dare={threshold_key(density): _election(one, other, density) for density in DENSITIES},
    )


def _overlap(one: Tensor, other: Tensor, threshold: float) -> Overlap:
    first, second = one.abs() > threshold, other.abs() > threshold
    both = first & second
    return Overlap(int(first.sum()), int(second.sum()), int(both.sum()), int((both & (one * other < 0)).sum()))


def _election(one: Tensor, other: Tensor, density: float) -> Election:
    kept = [_largest(delta, density) for delta in (one, other)]
    conflict = kept[0] & kept[1] & (one * other < 0)
    return Election(
        nonzero=(int((one != 0).sum()), int((other != 0).sum())),
        kept=(float(kept[0].sum()), float(kept[1].sum())),
        both=float((kept[0] & kept[1]).sum()),
        conflicts=float(conflict.sum()),
        lost=(
            float((conflict & (one.abs() < other.abs())).sum()),
            float((conflict & (one.abs() >= other.abs())).sum()),
        ),
    )


def _largest(delta: Tensor, density: float) -> Tensor:
    edge = delta.abs().flatten().sort(descending=True).values[max(0, int(density * delta.numel()) - 1)]
    return (delta.abs() >= edge) & (delta != 0)


def _histogram(tensors: Tensors) -> Histogram:
    size = torch.cat([delta.flatten() for delta in tensors.values()]).abs()
    edges = 10 ** torch.tensor(EDGES, dtype=torch.float64)
    inside = size[(size >= edges[0]) & (size < edges[-1])]
    counts = torch.bucketize(inside, edges, right=True).sub(1).bincount(minlength=len(EDGES) - 1)
    return Histogram(
        EDGES,
        tuple(int(count) for count in counts[: len(EDGES) - 1]),
        int((size == 0).sum()),
        int(((size > 0) & (size < edges[0])).sum()),
        int((size >= edges[-1]).sum()),
    )
