"""Finding the live deltas of a model: one for every trainable parameter, or a refusal that names it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from torch import Tensor, nn

from paft_plugin.errors import PaftError, raise_if_any, some
from paft_plugin.penalty.l1 import GradientSink, L1Pass, l1_of_difference, l1_of_product

L1On = Literal["delta", "factors"]
References = dict[str, Tensor]


class LiveDelta(Protocol):
    """A delta whose parameters are being trained."""

    @property
    def name(self) -> str:
        """The module or parameter that it changes, as the model names it."""

    def measure(self, thresholds: Sequence[float]) -> L1Pass:
        """The penalised norm, and the sparsity of δ."""

    def penalise(self, strength: float, thresholds: Sequence[float]) -> L1Pass:
        """`measure`, and add strength × subgradient of the norm into the parameters' `.grad`."""


@dataclass(frozen=True)
class LowRankDelta:
    """δ = s·BA of one LoRA module, penalised as the product."""

    name: str
    A: nn.Parameter  # [R, I]
    B: nn.Parameter  # [O, R]
    scale: float

    def measure(self, thresholds: Sequence[float]) -> L1Pass:
        return l1_of_product(self.A, self.B, self.scale, thresholds)

    def penalise(self, strength: float, thresholds: Sequence[float]) -> L1Pass:
        return l1_of_product(
            self.A, self.B, self.scale, thresholds, gradient_sink(self.A, strength), gradient_sink(self.B, strength)
        )


@dataclass(frozen=True)
class FactorsDelta:
    """δ = s·BA of one LoRA module, penalised as ‖A‖₁ + ‖B‖₁; its sparsity is still that of δ."""

    name: str
    A: nn.Parameter
    B: nn.Parameter
    scale: float

    def measure(self, thresholds: Sequence[float]) -> L1Pass:
        return self._pass(thresholds, None, None)

    def penalise(self, strength: float, thresholds: Sequence[float]) -> L1Pass:
        return self._pass(thresholds, gradient_sink(self.A, strength), gradient_sink(self.B, strength))

    def _pass(self, thresholds: Sequence[float], sink_A: GradientSink | None, sink_B: GradientSink | None) -> L1Pass:
        norm = l1_of_difference(self.A, None, sink=sink_A).norm + l1_of_difference(self.B, None, sink=sink_B).norm
        product = l1_of_product(self.A, self.B, self.scale, thresholds)
        return L1Pass(norm, product.small, product.entries)


@dataclass(frozen=True)
class FullDelta:
    """δ = θ − θ_pre of a parameter that is trained itself."""

    name: str
    parameter: nn.Parameter
    reference: Tensor

    def measure(self, thresholds: Sequence[float]) -> L1Pass:
        return l1_of_difference(self.parameter, self.reference, thresholds)

    def penalise(self, strength: float, thresholds: Sequence[float]) -> L1Pass:
        return l1_of_difference(self.parameter, self.reference, thresholds, gradient_sink(self.parameter, strength))


def gradient_sink(parameter: nn.Parameter, strength: float) -> GradientSink | None:
    """Where the subgradient for `parameter` goes, or None if it is frozen.

    A parameter that the task loss never touched has no `.grad` yet; that of L + λ‖δ‖₁ is then the penalty's alone.
    """
    if not parameter.requires_grad:
        return None
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return GradientSink(parameter.grad, strength)


def take_references(model: nn.Module) -> References:
    """A copy of every parameter that is trained itself, in its own dtype, on its own device: θ_pre.

    To be called while the model still holds the base model's weights, before a checkpoint is loaded.
    """
    return {name: parameter.detach().clone() for name, parameter in _trained_themselves(model)}


def find_live_deltas(model: nn.Module, references: References, l1_on: L1On) -> list[LiveDelta]:
    """Every delta that `model` trains; each trainable parameter belongs to exactly one.

    Raises:
        PaftError: naming each parameter or module whose delta is not s·BA or θ − θ_pre.
    """
    kind = LowRankDelta if l1_on == "delta" else FactorsDelta
    deltas: list[LiveDelta] = [kind(*parts) for parts in _low_rank_parts(model)]
    themselves = list(_trained_themselves(model))
    if themselves and l1_on == "factors":
        raise PaftError(
            "paft_l1_on: factors penalises LoRA factors only; use paft_l1_on: delta, because this is trained in full: "
            + some([name for name, _ in themselves])
        )
    deltas += [FullDelta(name, parameter, references[name]) for name, parameter in themselves]
    if not deltas:
        raise PaftError("nothing to penalise: the model has no trainable parameter")
    return deltas


def _low_rank_parts(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, nn.Parameter, float]]:
    problems: list[str] = []
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
            if adapter in module.lora_A:
                yield name, module.lora_A[adapter].weight, module.lora_B[adapter].weight, module.scaling[adapter]
            else:
                A, B = module.lora_embedding_A[adapter], module.lora_embedding_B[adapter]
                yield name, A, B, module.scaling[adapter]
    raise_if_any(problems)


def _why_not_low_rank(name: str, module: LoraLayer, adapter: str) -> str | None:
    if isinstance(module, ParamWrapper):
        return f"{name}: the penalty does not cover fused experts yet: remove lora_target_parameters"
    if adapter in module.lora_variant:
        variant = type(module.lora_variant[adapter]).__name__
        return f"{name}: its delta is not s·BA but that of {variant}: use plain LoRA"
    if adapter in module.lora_A and not isinstance(module.lora_A[adapter], nn.Linear):
        kind = type(module.lora_A[adapter]).__name__
        return f"{name}: the penalty does not cover LoRA on {kind}: leave it out of lora_target_modules"
    return None


def _trained_themselves(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Trainable parameters outside of LoRA factors."""
    problems: list[str] = []
    factors = {id(factor) for _, *pair, _ in _low_rank_parts(model) for factor in pair}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or id(parameter) in factors:
            continue
        if any(part.startswith(("lora_", "trainable_tokens")) for part in name.split(".")):
            problems.append(
                f"{name}: the penalty does not cover this trainable parameter: freeze it or drop its setting"
            )
        else:
            yield name, parameter
    raise_if_any(problems)
