"""What FSDP2 changes for a penalty: parameters, references and gradients are DTensors, each process holds a shard."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from paft_plugin.penalty.torch_private import local_chunk


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor, gathered if it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's shard, a view, or the tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def add_to_gradient(parameter: nn.Parameter, addition: Tensor, strength: float) -> None:
    """Add strength × `addition`, whole and the same in every process, into `parameter.grad`, without communication."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    if isinstance(parameter, DTensor):
        addition = distribute_tensor(addition, parameter.device_mesh, parameter.placements, src_data_rank=None)
    local(parameter.grad).add_(local(addition), alpha=strength)


def sum_over_shards(values: Tensor, like: Tensor) -> Tensor:
    """The sum of `values` over the processes that hold other shards of `like`."""
    return _over_shards(values, like, "sum")


def largest_over_shards(values: Tensor, like: Tensor) -> Tensor:
    """The largest of each of `values` over the processes that hold other shards of `like`."""
    return _over_shards(values, like, "max")


def _over_shards(values: Tensor, like: Tensor, operation: str) -> Tensor:
    if not isinstance(like, DTensor):
        return values
    placements = [Partial(operation) if isinstance(placement, Shard) else Replicate() for placement in like.placements]
    return DTensor.from_local(values, like.device_mesh, placements, run_check=False).full_tensor()


def find_in_shard(tensor: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the flattened whole's `indices`, ``[N]`` int64, this process holds, ``[N]`` bool, and where in its shard."""
    if not isinstance(tensor, DTensor):
        return torch.ones_like(indices, dtype=torch.bool), indices
    chunk = local_chunk(tensor)
    if chunk is None:
        return torch.zeros_like(indices, dtype=torch.bool), indices[:0]
    held = torch.ones_like(indices, dtype=torch.bool)
    position = torch.zeros_like(indices)
    for index, offset, own in zip(torch.unravel_index(indices, tensor.shape), chunk.offsets, chunk.sizes, strict=True):
        held &= (index >= offset) & (index < offset + own)
        position = position * own + index - offset
    return held, position[held]
