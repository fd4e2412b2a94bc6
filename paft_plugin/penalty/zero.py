"""The penalty under DeepSpeed's ZeRO-1 and 2, where gradients lie in partitions of the optimizer's when a step is due.

accelerate calls `engine.step()` from inside `backward`, so that is where the subgradient has to come in: after the engine has
reduced the gradients over micro-batches and processes, before it clips them.

Why not through the loss: there the subgradient would have to be taken in every micro-batch, divided by their number, and pass
the hooks that reduce each gradient as soon as it is ready, which reentrant checkpointing already strains. Here it is added once a
step, to what the engine will read: the mean over micro-batches and processes, still multiplied by the loss scale. That factor is
given to it too, so that the engine, which takes overflow, the norm, clipping and unscaling from these same gradients afterwards,
sees the gradient of L + λ‖δ‖₁ and nothing else; every process adds the same, so nothing is summed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from paft_plugin.penalty.l1 import L1Pass
from paft_plugin.penalty.live import LiveDelta


@dataclass(frozen=True)
class PartitionedDelta:
    """A delta whose parameters' gradients DeepSpeed has partitioned: gathered, added to, and put back, parameter by parameter."""

    delta: LiveDelta

    @property
    def name(self) -> str:
        return self.delta.name

    @property
    def entries(self) -> int:
        return self.delta.entries

    @property
    def device(self) -> torch.device:
        return self.delta.device

    @property
    def parameters(self) -> Sequence[nn.Parameter]:
        return self.delta.parameters

    def measure(self, thresholds: Sequence[float]) -> L1Pass:
        return self.delta.measure(thresholds)

    def sample(self, indices: Tensor) -> Tensor:
        return self.delta.sample(indices)

    def add_subgradient(self, strength: float) -> Tensor:
        from deepspeed.utils import safe_get_full_grad, safe_set_full_grad

        trained = [parameter for parameter in self.parameters if parameter.requires_grad]
        dtypes = [parameter.grad_dtype for parameter in trained]
        for parameter in trained:
            parameter.grad_dtype = None  # DeepSpeed hands out fp32, whatever the parameter's dtype
            parameter.grad = safe_get_full_grad(parameter)
        square = self.delta.add_subgradient(strength)
        for parameter, dtype in zip(trained, dtypes, strict=True):
            whole, parameter.grad = parameter.grad, None
            parameter.grad_dtype = dtype
            safe_set_full_grad(parameter, whole)
        return square


def before_engine_step(trainer: Trainer, act: Callable[[], None]) -> None:
    """Have `act` called before each of the engine's optimizer steps; the engine exists once training begins."""
    engine = trainer.model_wrapped
    inner = engine.step

    @wraps(inner)
    def step(*args: Any, **kwargs: Any) -> Any:
        act()
        return inner(*args, **kwargs)

    engine.step = step


def loss_scale(trainer: Trainer) -> float:
    """The factor that the partitioned gradients bear until the engine's step divides it out."""
    return float(getattr(trainer.model_wrapped.optimizer, "loss_scale", 1.0))
