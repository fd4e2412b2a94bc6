"""θ_pre of what is trained in full: where its copy is kept."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from paft_plugin.penalty.sharded import local

ReferencePlace = Literal["device", "host", "auto"]
References = dict[str, Tensor]

# What an Adam holds for each entry besides its gradient: two moments in fp32.
OPTIMIZER_BYTES = 8
# The rest of a GPU's free memory is left to activations.
USABLE_SHARE = 0.7


def take_references(parameters: Iterable[tuple[str, nn.Parameter]], place: ReferencePlace) -> References:
    """A copy of each parameter's local shard in its own dtype: θ_pre.

    To be called while the parameters still hold the base model's weights, before a checkpoint is loaded.

    Args:
        parameters: names and parameters that are trained themselves.
        place: `device`: beside the parameter; `host`: in pinned host memory, to be streamed block by block;
            `auto`: on the device if gradients, an Adam's moments and the copy leave room for activations there.
    """
    named = list(parameters)
    on_host = place == "host" or (place == "auto" and not fits_on_device([parameter for _, parameter in named]))
    copy = _host_copy if on_host else _device_copy
    return {name: copy(local(parameter.detach())) for name, parameter in named}


def fits_on_device(parameters: list[nn.Parameter]) -> bool:
    """Whether θ_pre has room beside what training will allocate, on every GPU that holds `parameters`."""
    needed: dict[torch.device, int] = {}
    for parameter in parameters:
        shard = local(parameter)
        if shard.is_cuda:
            entry = 2 * shard.element_size() + OPTIMIZER_BYTES  # reference, gradient, moments
            needed[shard.device] = needed.get(shard.device, 0) + entry * shard.numel()
    return all(size <= USABLE_SHARE * torch.cuda.mem_get_info(device)[0] for device, size in needed.items())


def _device_copy(shard: Tensor) -> Tensor:
    return shard.clone()


def _host_copy(shard: Tensor) -> Tensor:
    # Of the same layout if the parameter is dense, so that it need not be copied again to be read in memory's order.
    copy = torch.empty_like(shard, device="cpu", pin_memory=shard.is_cuda)
    return copy.copy_(shard)
