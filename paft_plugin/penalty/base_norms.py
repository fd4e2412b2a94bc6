"""‖θ_pre‖₂ of the weights that the live deltas change, so that a delta's size can be seen beside what it is added to."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from paft_plugin.penalty.l1 import difference_blocks, memory_order
from paft_plugin.penalty.live import ExpertsDelta, FullDelta
from paft_plugin.penalty.sharded import local, sum_over_shards
from paft_plugin.penalty.tally import Measurable

INT8_LARGEST = 127  # bitsandbytes' weight is int8 × the row's scale / this
ROWS = 1024  # of an int8 weight that are widened at a time
QUANTISED = ("Linear4bit", "Linear8bitLt")


@torch.no_grad()
def base_square(model: nn.Module, delta: Measurable) -> float | None:
    """‖θ_pre‖₂² of what `delta` is added to, over all shards; None where it is stored as something else than numbers.

    bitsandbytes' 4-bit weights are unpacked one at a time, as each forward pass does.

    Args:
        model: whose modules bear the names of the deltas.
        delta: one of its deltas, whatever it has become by now.
    """
    if isinstance(delta, FullDelta):
        square = _square(delta.reference).to(delta.device)
        return sum_over_shards(square, delta.parameter).item()
    if isinstance(delta, ExpertsDelta):
        wrapper = model.get_submodule(delta.name.rpartition(".")[0])
        assert isinstance(wrapper, ParamWrapper)
        return _square_of_weight(wrapper.get_param())
    adapted = model.get_submodule(delta.name)
    assert isinstance(adapted, BaseTunerLayer)
    base = adapted.get_base_layer()
    if type(base).__name__ in QUANTISED:
        return _square_of_quantised(base)
    weight = getattr(base, "weight", None)
    return _square_of_weight(weight) if isinstance(weight, Tensor) else None


def _square_of_weight(weight: Tensor) -> float | None:
    # Narrower floats bear a scale somewhere else.
    if weight.is_meta or not weight.is_floating_point() or weight.element_size() < 2:
        return None
    return sum_over_shards(_square(local(weight)), weight).item()


def _square_of_quantised(layer: Any) -> float | None:
    weight = layer.weight
    if type(weight).__name__ == "Params4bit":
        # In evaluation, some CPUs repack the weight in a way that dequantize_4bit misreads.
        if weight.quant_state is None or getattr(weight.quant_state, "packing_format_for_cpu", False):
            return None
        from bitsandbytes.functional import dequantize_4bit

        return _square(dequantize_4bit(weight.data, weight.quant_state)).item()
    if type(weight).__name__ == "Int8Params" and weight.dtype == torch.int8:
        # The first forward pass moves them from the weight into the layer's state.
        scales = weight.SCB if weight.SCB is not None else layer.state.SCB
        if scales is not None:
            rows = torch.cat([block.float().square().sum(1) for block in weight.data.split(ROWS)])
            return (rows.double() * (scales.double() / INT8_LARGEST).square()).sum().item()
    return None


def _square(tensor: Tensor) -> Tensor:
    """‖tensor‖₂², ``[]`` fp64, block by block."""
    square = torch.zeros((), dtype=torch.float64, device=tensor.device)
    for _, block in difference_blocks(tensor, None, memory_order(tensor)):
        square += block.dot(block)
    return square
