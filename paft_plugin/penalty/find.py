"""The live deltas of a model: one for every trainable parameter, or a refusal that names it.

Low-rank deltas are found in PEFT's layers. What is trained itself needs a copy of the base model's weights, θ_pre, which is taken
before training.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from paft_plugin.errors import PaftError, raise_if_any
from paft_plugin.penalty.live import ExpertsDelta, FactorsDelta, FullDelta, LiveDelta, LowRankDelta
from paft_plugin.penalty.settings import L1On, ReferencePlace
from paft_plugin.penalty.sharded import local

References = dict[str, Tensor]
"""Parameter → this process's shard of θ_pre."""

# What an Adam holds for each entry besides its gradient: two moments in fp32.
OPTIMIZER_BYTES = 8
# The rest of a GPU's free memory is left to activations.
USABLE_SHARE = 0.7


def find_live_deltas(model: nn.Module, references: References, l1_on: L1On) -> list[LiveDelta]:
    """Every delta that `model` trains; each trainable parameter belongs to exactly one, tied ones to one together.

    Of several adapters, the active ones count; `references` are those of `trained_themselves(model)`.

    Raises:
        PaftError: naming each parameter or module whose delta is not s·BA or θ − θ_pre.
    """
    products = list(_products(model))
    deltas: list[LiveDelta] = [FactorsDelta(product) for product in products] if l1_on == "factors" else [*products]
    deltas += [FullDelta(name, parameter, references[name]) for name, parameter in trained_themselves(model)]
    if not deltas:
        raise PaftError("nothing to penalise: the model has no trainable parameter")
    return deltas


def trained_themselves(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Trainable parameters outside of LoRA factors (full fine-tuning, `modules_to_save` …); `PaftError` as `find_live_deltas`."""
    problems: list[str] = []
    found = []
    factors = {id(factor) for product in _products(model) for factor in (product.A, product.B)}
    own = {id(parameter) for parameter in _adapter_parameters(model)}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or id(parameter) in factors:
            continue
        if id(parameter) in own:
            problems.append(
                f"{name}: the penalty does not cover this trainable parameter of an adapter: freeze it or drop its setting"
            )
        found.append((name, parameter))
    raise_if_any(problems)
    return found


def _adapter_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Parameters of PEFT's own, whose δ is not θ − θ_pre; `trainable_token_indices` are full copies and not among them."""
    for module in model.modules():
        if isinstance(module, BaseTunerLayer) and not isinstance(module, TrainableTokensLayer):
            for layer in module.adapter_layer_names:
                holder = getattr(module, layer, None)
                if isinstance(holder, nn.Parameter):
                    yield holder
                elif isinstance(holder, nn.Module):
                    yield from holder.parameters()
        if isinstance(module, PeftModel) and isinstance(getattr(module, "prompt_encoder", None), nn.Module):
            yield from module.prompt_encoder.parameters()


def _products(model: nn.Module) -> Iterator[LowRankDelta | ExpertsDelta]:
    problems: list[str] = []
    seen: set[frozenset[int]] = set()
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        for adapter in module.active_adapters:
            if adapter not in module.scaling:
                continue
            problem = _why_not_low_rank(name, module, adapter)
            if problem:
                problems.append(problem)
                continue
            product = _product(name, module, adapter)
            # An adapter that PEFT ties to another one lies in the same memory, transposed: one δ.
            memory = frozenset(local(factor).data_ptr() for factor in (product.A, product.B))
            if memory not in seen and (product.A.requires_grad or product.B.requires_grad):
                yield product
            seen |= {memory} if all(memory) else set()
    raise_if_any(problems)


def _product(name: str, module: LoraLayer, adapter: str) -> LowRankDelta | ExpertsDelta:
    scale = module.scaling[adapter]
    if adapter not in module.lora_A:
        return LowRankDelta(name, module.lora_embedding_A[adapter], module.lora_embedding_B[adapter], scale)
    A, B = module.lora_A[adapter].weight, module.lora_B[adapter].weight
    if isinstance(module, ParamWrapper):
        return ExpertsDelta(f"{name}.{module.parameter_name}", A, B, scale, module.num_experts)
    return LowRankDelta(name, A, B, scale)


def _why_not_low_rank(name: str, module: LoraLayer, adapter: str) -> str | None:
    if adapter in module.lora_variant:
        variant = type(module.lora_variant[adapter]).__name__
        return f"{name}: its delta is not s·BA but that of {variant}: use plain LoRA"
    if adapter in module.lora_A and not isinstance(module.lora_A[adapter], nn.Linear):
        kind = type(module.lora_A[adapter]).__name__
        return f"{name}: the penalty does not cover LoRA on {kind}: leave it out of lora_target_modules"
    return None


def take_references(parameters: Iterable[tuple[str, nn.Parameter]], place: ReferencePlace) -> References:
    """A copy of each parameter's local shard in its own dtype: θ_pre.

    To be called while the parameters still hold the base model's weights, before a checkpoint is loaded. `host` is pinned
    memory, to be streamed block by block; `auto` the device if gradients, an Adam's moments and the copy leave room there.
    """
    named = {name: local(parameter.detach()) for name, parameter in parameters}
    on_host = place == "host" or (place == "auto" and not fits_on_device(named.values()))
    return {name: _host_copy(shard) if on_host else shard.clone() for name, shard in named.items()}


def fits_on_device(shards: Iterable[Tensor]) -> bool:
    """Whether θ_pre has room beside what training will allocate, on every GPU that holds `shards` of parameters."""
    needed: dict[torch.device, int] = {}
    for shard in shards:
        if shard.is_cuda:
            entry = 2 * shard.element_size() + OPTIMIZER_BYTES  # reference, gradient, moments
            needed[shard.device] = needed.get(shard.device, 0) + entry * shard.numel()
    return all(size <= USABLE_SHARE * torch.cuda.mem_get_info(device)[0] for device, size in needed.items())


def _host_copy(shard: Tensor) -> Tensor:
    # Of the same layout if the parameter is dense, so that it need not be copied again to be read in memory's order.
    copy = torch.empty_like(shard, device="cpu", pin_memory=shard.is_cuda)
    return copy.copy_(shard)
