"""What the penalty needs of torch (2.13) and torch offers no public way to: when a release changes it, it breaks here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer


def acts_in_backward(parameter: nn.Parameter) -> bool:
    """Whether hooks run once the gradient is there, as optimizers set them that step or offload parameter by parameter."""
    return bool(getattr(parameter, "_post_accumulate_grad_hooks", None))


def local_chunk(tensor: DTensor) -> Any | None:
    """Where in the whole tensor this process's shard lies (`offsets`, `sizes`); None if it holds nothing."""
    return next(iter(tensor.__create_chunk_list__()), None)


def stand_in(optimizer: Optimizer, groups: list[dict[str, Any]]) -> SimpleNamespace:
    """What a learning rate scheduler takes for its optimizer, with parameter groups that it may change."""
    # A scheduler warns if the optimizer has never stepped, and asks this attribute.
    return SimpleNamespace(param_groups=groups, step=optimizer.step, _opt_called=True)
