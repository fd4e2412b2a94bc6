"""Which runs the penalty is exact in; every other one is refused by the name of its setting.

`args.py` asks before a run, from the config alone, so neither torch nor transformers is imported until a model is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from paft_plugin.errors import some
from paft_plugin.penalty.settings import PenaltySettings

if TYPE_CHECKING:
    from torch import nn
    from transformers import Trainer


def why_not_optimizer(setting: str, name: str) -> list[str]:
    """A problem if the optimizer of this name consumes gradients during backward; `setting` is what the user calls it by."""
    plain = name.lower()
    if "lomo" not in plain and not plain.endswith("layerwise"):
        return []
    return [
        f"{setting}: {name}: it consumes gradients during backward, before the penalty's can be added: use another one, "
        "such as adamw_torch"
    ]


def why_not_proximal(setting: str, name: str) -> list[str]:
    """A problem if soft-thresholding the parameters after a step of this optimizer would not last."""
    if not name.lower().startswith("schedule_free"):
        return []
    return [
        f"{setting}: {name}: it averages weights of its own, which paft_l1_mode: proximal does not reach: use another one, "
        "such as adamw_torch, or paft_l1_mode: subgradient"
    ]


def why_unsupported(trainer: Trainer, settings: PenaltySettings) -> list[str]:
    """A problem for each way in which `trainer` spreads or steps the model that the penalty can't follow."""
    optimizer = str(getattr(trainer.args.optim, "value", trainer.args.optim))
    problems = why_not_optimizer("optim", optimizer)
    if settings.mode == "proximal" or settings.end < 1:
        problems += why_not_proximal("optim", optimizer)
    if trainer.args.n_gpu > 1:
        problems.append(
            f"this process would use {trainer.args.n_gpu} GPUs through torch.nn.DataParallel, whose replicas hold no "
            "parameters: launch one process a GPU (accelerate, torchrun), or set CUDA_VISIBLE_DEVICES to one"
        )
    if trainer.is_fsdp_enabled and getattr(trainer.accelerator.state.fsdp_plugin, "fsdp_version", 1) == 1:
        problems.append(
            "fsdp_version: 1: FSDP1 flattens parameters into one vector, in which δ has no tensors: use fsdp_version: 2"
        )
    if trainer.is_deepspeed_enabled:
        plugin = trainer.accelerator.state.deepspeed_plugin
        problems += why_not_deepspeed(plugin.deepspeed_config, settings)
    return problems


def why_gradients_are_lost(model: nn.Module) -> list[str]:
    """A problem if hooks take gradients away during backward, as optimizers do that step or offload parameter by parameter."""
    from paft_plugin.penalty.torch_private import acts_in_backward

    hooked = [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and acts_in_backward(parameter)
    ]
    if not hooked:
        return []
    return [
        "the optimizer takes gradients away during backward, before the penalty's can be added: use one that reads .grad "
        f"when it steps. Hooked: {some(hooked)}"
    ]


def why_no_gradient_is_left(model: nn.Module) -> list[str]:
    """A problem if backward has left no gradient at all, as optimizers do that step within it in ways that no hook shows."""
    if any(parameter.grad is not None for parameter in model.parameters()):
        return []
    return [
        "no gradient is left when the optimizer step is due: they were consumed during backward, before the penalty's could "
        "be added: use an optimizer that reads .grad when it steps"
    ]


def why_not_deepspeed(config: dict[str, Any], settings: PenaltySettings) -> list[str]:
    """A problem for each setting of a DeepSpeed configuration that keeps the penalty from its gradients."""
    zero = config.get("zero_optimization", {})
    problems = []
    if zero.get("stage", 0) == 3:
        problems.append(
            "deepspeed: ZeRO stage 3: parameters are empty when the penalty needs them: use stage 1 or 2, or fsdp_version: 2"
        )
    if zero.get("offload_optimizer", {}).get("device", "none") != "none":
        problems.append("deepspeed: offload_optimizer: gradients leave the device piece by piece: remove it")
    if config.get("compile", {}).get("deepcompile"):
        problems.append(
            "deepspeed: deepcompile: its compiled backward keeps gradients in buffers of its own: remove it"
        )
    if settings.mode == "proximal" or settings.end < 1:
        key = "paft_l1_mode: proximal" if settings.mode == "proximal" else "paft_l1_until"
        problems.append(
            f"{key}: DeepSpeed's own copy of the weights would undo it: use subgradient, or fsdp_version: 2"
        )
    if settings.is_steered:
        key = "paft_max_loss_increase" if settings.target_sparsity is None else "paft_target_sparsity"
        problems.append(
            f"{key}: the controller does not see DeepSpeed's gradients: set paft_l1_lambda instead, or use "
            "fsdp_version: 2"
        )
    return problems
