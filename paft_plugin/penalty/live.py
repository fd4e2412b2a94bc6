"""Live deltas: δ of parameters that are being trained, whatever they are stored as.

Each measures its own L1 norm and sparsity and adds the penalty's subgradient to `.grad`; those that are penalised entry by entry
can also be shrunk (soft-thresholded) towards θ_pre. Under FSDP2 the parameters are DTensors: entry-wise deltas stay on the local
shard, low-rank ones gather their small factors.

Shape letters: `O` rows of δ, `I` columns, `R` rank, `E` experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from paft_plugin.deltas.proof import Measurement
from paft_plugin.penalty.l1 import (
    L1Pass,
    add_gradient_of_difference,
    add_subgradient_of_difference,
    gradient_of_product,
    measure_difference,
    measure_product,
    square_of_difference,
    square_of_product,
    subgradient_of_product,
)
from paft_plugin.penalty.proximal import shrink_
from paft_plugin.penalty.sharded import add_to_gradient, find_in_shard, local, sum_over_shards, whole

StepSize = Callable[[nn.Parameter], float]


class LiveDelta(Protocol):
    """A delta whose parameters are being trained."""

    @property
    def name(self) -> str:
        """The module or parameter that it changes, as the model names it."""

    @property
    def entries(self) -> int:
        """How many entries δ has, over all shards."""

    @property
    def parameters(self) -> Sequence[nn.Parameter]:
        """What is trained of it, or could be."""

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""

    def measure(self, thresholds: Sequence[float]) -> L1Pass:
        """The penalised norm, and the sparsity of δ, over all shards."""

    def sample(self, indices: Tensor) -> Tensor:
        """δ in fp32 at `indices` (int64, ``[N]``) of its flattened entries, the same in every process."""

    def add_subgradient(self, strength: float) -> Tensor:
        """Add strength × subgradient of the norm into the parameters' `.grad`; returns the subgradient's ‖·‖², fp32."""

    def square(self) -> Tensor:
        """‖δ‖₂², ``[]`` fp64, over all shards; of δ itself, whatever the L1 norm is taken of."""

    def add_decay(self, strength: float) -> None:
        """Add strength × gradient of ‖δ‖₂² into the parameters' `.grad`."""


@runtime_checkable
class Shrinkable(Protocol):
    """A delta that is penalised entry by entry, so that the penalty has a proximal step of its own."""

    def shrink(self, strength: float, step_size: StepSize) -> None:
        """Soft-threshold what is penalised by strength × the parameter's step size."""

    def zeros(self, threshold: float) -> list[Tensor]:
        """For each of `parameters`, which of its entries are zero, or at `threshold` or under it if they are those of δ."""

    def reset(self, zeros: Sequence[Tensor]) -> None:
        """Take such entries back to zero."""


@dataclass(frozen=True)
class _Factors:
    """What all deltas of two factors have."""

    name: str
    A: nn.Parameter
    B: nn.Parameter
    scale: float

    @property
    def parameters(self) -> Sequence[nn.Parameter]:
        return (self.A, self.B)

    @property
    def device(self) -> torch.device:
        return self.A.device


class LowRankDelta(_Factors):
    """δ = s·BA of one LoRA module, penalised as the product: A ``[R, I]``, B ``[O, R]``."""

    @property
    def entries(self) -> int:
        return self.B.shape[0] * self.A.shape[1]

    def measure(self, thresholds: Sequence[float]) -> L1Pass:
        return measure_product(whole(self.A), whole(self.B), self.scale, thresholds)

    def sample(self, indices: Tensor) -> Tensor:
        rows, columns = indices // self.A.shape[1], indices % self.A.shape[1]
        return _entries_of_product(whole(self.A)[:, columns].T, whole(self.B)[rows], self.scale)

    def add_subgradient(self, strength: float) -> Tensor:
        grad_A, grad_B = subgradient_of_product(whole(self.A), whole(self.B), self.scale)
        return _add_if_trained(self.A, grad_A, strength) + _add_if_trained(self.B, grad_B, strength)

    def square(self) -> Tensor:
        return square_of_product(whole(self.A), whole(self.B), self.scale)

    def add_decay(self, strength: float) -> None:
        grad_A, grad_B = gradient_of_product(whole(self.A), whole(self.B), self.scale)
        _add_if_trained(self.A, grad_A, strength)
        _add_if_trained(self.B, grad_B, strength)


@dataclass(frozen=True)
class ExpertsDelta(_Factors):
    """δ[e] = s·B[e]A[e] of a fused stack of experts (PEFT's `target_parameters`), penalised as the products.

    A is ``[E·R, I]``, expert by expert; B is ``[O, R·E]``, rank by rank.
    """

    experts: int

    @property
    def entries(self) -> int:
        return self.experts * self.B.shape[0] * self.A.shape[1]

    def measure(self, thresholds: Sequence[float]) -> L1Pass:
        passes = [measure_product(A, B, self.scale, thresholds) for A, B in self.factors()]
        return L1Pass(_sum(one.norm for one in passes), _sum(one.small for one in passes))

    def sample(self, indices: Tensor) -> Tensor:
        expert, rows, columns = torch.unravel_index(indices, (self.experts, self.B.shape[0], self.A.shape[1]))
        A = whole(self.A).reshape(self.experts, -1, self.A.shape[1])  # [E, R, I]
        B = whole(self.B).reshape(self.B.shape[0], -1, self.experts)  # [O, R, E]
        return _entries_of_product(A[expert, :, columns], B[rows, :, expert], self.scale)

    def add_subgradient(self, strength: float) -> Tensor:
        return self._add([subgradient_of_product(A, B, self.scale) for A, B in self.factors()], strength)

    def square(self) -> Tensor:
        return _sum(square_of_product(A, B, self.scale) for A, B in self.factors())

    def add_decay(self, strength: float) -> None:
        self._add([gradient_of_product(A, B, self.scale) for A, B in self.factors()], strength)

    def _add(self, pairs: Sequence[tuple[Tensor, Tensor]], strength: float) -> Tensor:
        """Add the gradients of each expert's A and B; returns their ‖·‖²."""
        grad_A = torch.stack([grad for grad, _ in pairs]).reshape(self.A.shape)
        grad_B = torch.stack([grad for _, grad in pairs], dim=-1).reshape(self.B.shape)
        return _add_if_trained(self.A, grad_A, strength) + _add_if_trained(self.B, grad_B, strength)

    def factors(self) -> Iterator[tuple[Tensor, Tensor]]:
        """A, ``[R, I]``, and B, ``[O, R]``, of each expert, whole."""
        A = whole(self.A).reshape(self.experts, -1, self.A.shape[1])  # [E, R, I]
        B = whole(self.B).reshape(self.B.shape[0], -1, self.experts)  # [O, R, E]
        return zip(A.unbind(0), B.unbind(-1), strict=True)


@dataclass(frozen=True)
class FactorsDelta:
    """δ of one LoRA module, penalised as ‖A‖₁ + ‖B‖₁; its sparsity is still that of δ."""

    product: LowRankDelta | ExpertsDelta

    @property
    def name(self) -> str:
        return self.product.name

    @property
    def entries(self) -> int:
        return self.product.entries

    @property
    def parameters(self) -> Sequence[nn.Parameter]:
        return self.product.parameters

    @property
    def device(self) -> torch.device:
        return self.product.device

    def measure(self, thresholds: Sequence[float]) -> L1Pass:
        norm = _sum(sum_over_shards(measure_difference(local(f), None).norm, f) for f in self.parameters)
        return L1Pass(norm, self.product.measure(thresholds).small)

    def sample(self, indices: Tensor) -> Tensor:
        return self.product.sample(indices)

    def add_subgradient(self, strength: float) -> Tensor:
        return _sum(_add_sign(factor, None, strength) for factor in self.parameters)

    def square(self) -> Tensor:
        return self.product.square()

    def add_decay(self, strength: float) -> None:
        self.product.add_decay(strength)

    def shrink(self, strength: float, step_size: StepSize) -> None:
        for factor in self.parameters:
            if factor.requires_grad:
                shrink_(local(factor), None, strength * step_size(factor))

    def zeros(self, threshold: float) -> list[Tensor]:
        return [local(factor.detach()) == 0 for factor in self.parameters]

    def reset(self, zeros: Sequence[Tensor]) -> None:
        for factor, mask in zip(self.parameters, zeros, strict=True):
            local(factor.detach()).masked_fill_(mask, 0)


@dataclass(frozen=True)
class FullDelta:
    """δ = θ − θ_pre of a parameter that is trained itself."""

    name: str
    parameter: nn.Parameter
    reference: Tensor  # the local shard of θ_pre, on any device

    @property
    def entries(self) -> int:
        return self.parameter.numel()

    @property
    def parameters(self) -> Sequence[nn.Parameter]:
        return (self.parameter,)

    @property
    def device(self) -> torch.device:
        return self.parameter.device

    def measure(self, thresholds: Sequence[float]) -> L1Pass:
        own = measure_difference(local(self.parameter), self.reference, thresholds)
        return L1Pass(sum_over_shards(own.norm, self.parameter), sum_over_shards(own.small, self.parameter))

    def sample(self, indices: Tensor) -> Tensor:
        held, positions = find_in_shard(self.parameter, indices)
        here = local(self.parameter.detach()).reshape(-1)[positions].float()
        base = self.reference.reshape(-1)[positions.to(self.reference.device)].to(here)
        values = torch.zeros(indices.shape, dtype=torch.float32, device=here.device)
        values[held] = here - base
        return sum_over_shards(values, self.parameter)

    def add_subgradient(self, strength: float) -> Tensor:
        return _add_sign(self.parameter, self.reference, strength)

    def square(self) -> Tensor:
        return sum_over_shards(square_of_difference(local(self.parameter), self.reference), self.parameter)

    def add_decay(self, strength: float) -> None:
        gradient = local(_gradient_of(self.parameter))
        add_gradient_of_difference(local(self.parameter), self.reference, gradient, strength)

    def shrink(self, strength: float, step_size: StepSize) -> None:
        shrink_(local(self.parameter), self.reference, strength * step_size(self.parameter))

    def zeros(self, threshold: float) -> list[Tensor]:
        here = local(self.parameter.detach())
        return [(here - self.reference.to(here.device)).abs() <= threshold]

    def reset(self, zeros: Sequence[Tensor]) -> None:
        here, (mask,) = local(self.parameter.detach()), zeros
        here.copy_(torch.where(mask, self.reference.to(here.device), here))


def measure(deltas: Sequence[LiveDelta], thresholds: Sequence[float]) -> Measurement:
    """Norm and sparsity of all deltas together; under FSDP2 every process must take part."""
    passes = [delta.measure(thresholds) for delta in deltas]
    # Stacked before they are read, so that a GPU is waited for once and not once a delta.
    norm = _sum(one.norm for one in passes).item()
    small = _sum(one.small for one in passes).tolist()
    entries = sum(delta.entries for delta in deltas)
    return Measurement(norm, {t: count / entries for t, count in zip(thresholds, small, strict=True)}, entries)


def _entries_of_product(A: Tensor, B: Tensor, scale: float) -> Tensor:
    """s·Σᵣ BᵣAᵣ of N entries, from their columns of A and rows of B, both ``[N, R]``."""
    return (A.detach().float() * B.detach().float()).sum(-1) * scale


def l2_norm(deltas: Sequence[LiveDelta]) -> float:
    """‖δ‖₂ of all deltas together; under FSDP2 every process must take part."""
    return _sum(delta.square() for delta in deltas).sqrt().item()


def add_subgradients(deltas: Sequence[LiveDelta], strength: float) -> float:
    """Add strength × subgradient of all norms into the `.grad`s; returns the l2 norm of the subgradient, strength left out."""
    return _sum(delta.add_subgradient(strength) for delta in deltas).sqrt().item()


def gradient_norm(model: nn.Module) -> float:
    """The l2 norm of all gradients of `model`, over all shards."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return whole(torch.nn.utils.get_total_norm(gradients)).item()


def _add_if_trained(factor: nn.Parameter, subgradient: Tensor, strength: float) -> Tensor:
    if not factor.requires_grad:
        return subgradient.new_zeros(())
    add_to_gradient(factor, subgradient, strength)
    return subgradient.square().sum()


def _add_sign(parameter: nn.Parameter, reference: Tensor | None, strength: float) -> Tensor:
    if not parameter.requires_grad:
        return torch.zeros((), device=parameter.device)
    add_subgradient_of_difference(local(parameter), reference, local(_gradient_of(parameter)), strength)
    # Every entry has a subgradient of ±1 but those that never moved.
    return torch.tensor(float(parameter.numel()), device=parameter.device)


def _gradient_of(parameter: nn.Parameter) -> Tensor:
    # The task loss may never have touched it: the gradient is then the penalty's alone.
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _sum(tensors: Iterable[Tensor]) -> Tensor:
    first, *others = tensors
    return torch.stack([first, *(other.to(first.device) for other in others)]).sum(0)
