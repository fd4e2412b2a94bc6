"""The fused delta, tensor by tensor, in the forms that an adapter holds: LoRA factors, and whole copies."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from mergekit.common import ModelReference
from mergekit.merge_methods.task_adapter import ExecuteMergeMethodTask
from torch import Tensor

from paft_plugin.deltas.belongs import is_finite
from paft_plugin.errors import PaftError
from paft_plugin.fusion.adapter.factors import (
    Product,
    Truncation,
    least_errors,
    side_by_side,
    truncate_dense,
    truncate_product,
)
from paft_plugin.fusion.adapter.fused_delta import WITHOUT, FusedDelta, changes, check_planned
from paft_plugin.fusion.adapter.peft_model import Slot
from paft_plugin.fusion.merge.fusion import NotFiniteError

Held = TypeVar("Held", Tensor, Product)
# Up to this size the errors of all ranks are cheap to work out: half a second.
SMALL = 1024
# What equal tensors may differ by after an average of them, relative to the greatest: their rounding in fp32.
DUST = 1e-6


@dataclass(frozen=True)
class Adapted:
    """A module with LoRA factors."""

    slot: Slot
    truncation: Truncation


@dataclass(frozen=True)
class Saved:
    """A whole copy of a parameter, in the dtype in which the base stores it: so PEFT loads it."""

    slot: Slot
    tensor: Tensor


def kind_of(module: str) -> str:
    """A module's name with its numbers left open: the same for all layers."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", module)


def fused_parts(fused: FusedDelta, rank: int | None, max_error: float, quiet: bool = True) -> Iterator[Adapted | Saved]:
    """Yield what the adapter holds; nothing but the tensor at hand is in memory.

    `rank` is the most per module; None leaves exact products their own. Where a module misses more of its delta
    (‖δ − BA‖/‖δ‖) than `max_error`, the errors of other ranks are worked out too: of every module up to 1024 wide, of
    greater ones for the first of each kind.

    Raises:
        PaftError: A change that no adapter can hold, or no `rank` for a merge that is not linear in the deltas.
    """
    with fused.fusion.planned() as plan:
        merges = fused.merges()
        check_planned(fused, merges)
        linear: dict[str, dict[ModelReference, float]] = {}
        others: dict[str, ExecuteMergeMethodTask] = {}
        for merge in merges:
            if fused.is_second(merge.output_weight):
                continue
            name = fused.name_of(merge.output_weight)
            found = None if name is None else fused.factorable(merge, name)
            if found is None:
                others[merge.output_weight.name] = merge
            elif name is not None:
                linear[name] = found
        if others and rank is None:
            raise PaftError(
                f"{fused.fusion.recipe}: {fused.fusion.config.merge_method} of these models is no sum of adapters' deltas, "
                "so the fused adapter is an approximation. Give its rank, such as --rank 64."
            )
        for name, adapters in linear.items():
            yield from _sum_of_adapters(fused, name, adapters, rank)
        if others:
            assert rank is not None
            sampled: set[str] = set()
            for output, merged in fused.fusion.run(plan, quiet):
                if output in others:
                    yield from _change_by_merge(fused, others[output], merged, rank, max_error, sampled)


def _sum_of_adapters(
    fused: FusedDelta, name: str, adapters: dict[ModelReference, float], rank: int | None
) -> Iterator[Adapted | Saved]:
    """One tensor whose delta is the sum of some adapters', each times a coefficient."""
    if not adapters:
        return
    slot = fused.slot_of(name)
    if fused.is_whole(name, slot):
        base = fused.store.tensor(name)
        whole = base.float()
        for model, coefficient in adapters.items():
            whole = whole + coefficient * fused.delta(model, name)
        yield Saved(slot, _checked(fused, name, whole.to(base.dtype)))
        return
    parts = []
    for model, coefficient in adapters.items():
        scale, B, A = fused.factors(model, name)
        parts.append((coefficient * scale, B, A))
    product = _checked(fused, name, side_by_side(parts))
    yield Adapted(slot, truncate_product(product, rank or product.rank))


def _change_by_merge(
    fused: FusedDelta, merge: ExecuteMergeMethodTask, merged: Tensor, rank: int, max_error: float, sampled: set[str]
) -> Iterator[Adapted | Saved]:
    """One tensor whose delta is what the merge made of it, minus the base; `sampled` gets the kinds whose errors are known."""
    name = fused.name_of(merge.output_weight)
    if name is None:
        raise PaftError(
            f"{merge.output_weight.name}: the base has no such tensor, so no adapter can hold it. {WITHOUT}"
        )
    stored = fused.store.tensor(name)
    if stored.shape != merged.shape:
        raise PaftError(
            f"{name}: the fused tensor has shape {tuple(merged.shape)}, the base's {tuple(stored.shape)}. An adapter cannot "
            "resize a vocabulary. Resize the base first, or merge without --adapter."
        )
    base = stored.float()
    delta = _checked(fused, name, merged.float() - base)
    touched = any(changes(fused.fusion.loaders[model], name, fused.store) for model in merge.model_order)
    if not touched and float(delta.abs().max()) <= DUST * float(base.abs().max()):
        return
    slot = fused.slot_of(name)
    if fused.is_whole(name, slot):
        if delta.any():
            yield Saved(slot, _checked(fused, name, merged.to(stored.dtype)))
        return
    matrix = (delta.T if slot.transposed else delta).to(fused.fusion.options.device)
    truncation, kind = truncate_dense(matrix, rank), kind_of(slot.module)
    if truncation.relative_error > max_error and (min(matrix.shape) <= SMALL or kind not in sampled):
        sampled.add(kind)
        truncation = replace(truncation, tail=least_errors(matrix))
    yield Adapted(slot, truncation)


def _checked(fused: FusedDelta, name: str, held: Held) -> Held:
    """What an adapter is to hold of a tensor's change, unless NaN or infinity comes of it."""
    if held.is_finite if isinstance(held, Product) else is_finite(held):
        return held
    raise NotFiniteError(
        f"{fused.fusion.recipe}: the fused delta of {name} would hold NaN or infinity. A weight, lambda, an adapter's lora_alpha "
        "or its factors are too large, or the base itself holds them there. Correct that, or merge without --adapter."
    )
