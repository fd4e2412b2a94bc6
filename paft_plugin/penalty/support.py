"""Which runs the penalty is exact in; every other one is refused by the name of its setting."""

from __future__ import annotations

from transformers import Trainer


def why_unsupported(trainer: Trainer) -> list[str]:
    """A problem for each way in which `trainer` spreads the model that the penalty can't follow."""
    problems = []
    if trainer.args.n_gpu > 1:
        problems.append(
            f"this process would use {trainer.args.n_gpu} GPUs through torch.nn.DataParallel, whose replicas hold no "
            "parameters: launch one process a GPU (accelerate, torchrun), or set CUDA_VISIBLE_DEVICES to one"
        )
    if trainer.is_deepspeed_enabled:
        problems.append("deepspeed: not yet")
    if trainer.is_fsdp_enabled and getattr(trainer.accelerator.state.fsdp_plugin, "fsdp_version", 1) == 1:
        problems.append("fsdp_version: 1: FSDP1 flattens parameters, so δ has no tensors: use fsdp_version: 2")
    return problems
