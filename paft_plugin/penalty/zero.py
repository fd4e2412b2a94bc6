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
from functools import wraps
from typing import Any

from transformers import Trainer

from paft_plugin.penalty.live import LiveDelta


def add_to_partitions(trainer: Trainer, deltas: Sequence[LiveDelta], strength: float) -> None:
    """Add strength × subgradient to gradients that are partitioned: those of one delta at a time are gathered and put back."""
    from deepspeed.utils import safe_get_full_grad, safe_set_full_grad

    # What the gradients bear until the engine's step divides it out.
    loss_scale = float(getattr(trainer.model_wrapped.optimizer, "loss_scale", 1.0))
    for delta in deltas:
        trained = [parameter for parameter in delta.parameters if parameter.requires_grad]
        dtypes = [parameter.grad_dtype for parameter in trained]
        for parameter in trained:
            parameter.grad_dtype = None  # DeepSpeed hands out fp32, whatever the parameter's dtype
            parameter.grad = safe_get_full_grad(parameter)
        delta.add_subgradient(strength * loss_scale)
        for parameter, dtype in zip(trained, dtypes, strict=True):
            whole, parameter.grad = parameter.grad, None
            parameter.grad_dtype = dtype
            safe_set_full_grad(parameter, whole)


def before_engine_step(trainer: Trainer, act: Callable[[], None]) -> None:
    """Have `act` called before each of the engine's optimizer steps; the engine exists once training begins."""
    engine = trainer.model_wrapped
    inner = engine.step

    @wraps(inner)
    def step(*args: Any, **kwargs: Any) -> Any:
        act()
        return inner(*args, **kwargs)

    engine.step = step
