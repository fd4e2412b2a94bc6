"""The summands of an adapter's delta on one base tensor, each computed alone, in fp32, from what lies in the adapter's file.

Shapes: `E` experts, `r` rank, `O` output features, `I` input features, `V` vocabulary, `D` model dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from paft_plugin.deltas.adapter import Adapter
from paft_plugin.deltas.skeleton import Place
from paft_plugin.deltas.store import TensorStore


class Change(Protocol):
    """One summand of δ."""

    def shape(self, adapter: Adapter) -> tuple[int, ...]:
        """Of the summand, read from headers; a grown vocabulary has more rows than the base's tensor."""

    def value(self, adapter: Adapter, base: TensorStore, name: str) -> Tensor:
        """The summand in fp32, for the base tensor `name` and in its shape: rows beyond the base's are left out."""


@dataclass(frozen=True)
class LowRank:
    """s·B·A of a linear layer, ``(O, I)``; transposed for an embedding, ``(V, D)``, and for a Conv1D layer, ``(I, O)``."""

    module: str
    transposed: bool

    def shape(self, adapter: Adapter) -> tuple[int, ...]:
        shape = adapter.shape(self.module)
        return shape[::-1] if self.transposed else shape

    def value(self, adapter: Adapter, base: TensorStore, name: str) -> Tensor:
        return adapter.product(self.module, self.transposed)[: base.shape(name)[0]]


@dataclass(frozen=True)
class OfParameter:
    """s·B·A of a parameter that `target_parameters` names: fused experts, ``(E, O, I)`` or ``(E, I, O)``, or a matrix.

    PEFT keeps the factors of all experts in two matrices: A is ``(E·r, I)``, expert by expert; B is ``(O, r·E)``, in which the
    expert is the *faster* index.
    """

    module: str
    """Under which the adapter's file holds the factors."""
    place: Place
    """What of the parameter the base's tensor is."""
    wanted: tuple[int, ...]
    """Shape of the whole parameter."""
    inputs_first: bool
    """Whether an expert's matrix is stored as ``(I, O)``."""

    @property
    def experts(self) -> int:
        return self.wanted[0] if len(self.wanted) == 3 else 1

    def shape(self, adapter: Adapter) -> tuple[int, ...]:
        matrix = adapter.shape(self.module)
        matrix = matrix[::-1] if self.inputs_first else matrix
        if self.place.expert is None:
            return (self.experts, *matrix) if len(self.wanted) == 3 else matrix
        return matrix[0] // self.place.parts, matrix[1]

    def value(self, adapter: Adapter, base: TensorStore, name: str) -> Tensor:
        factors = adapter.factors[self.module]
        A = adapter.store.tensor(factors.A).unflatten(0, (self.experts, -1))  # (E, r, I)
        B = adapter.store.tensor(factors.B).unflatten(1, (-1, self.experts))  # (O, r, E)
        scale = adapter.scale_of(self.place.parameter, rank=A.shape[1])
        if self.place.expert is not None:
            return self._matrix(A, B, self.place.expert, scale)
        if len(self.wanted) == 2:
            return self._matrix(A, B, 0, scale)
        change = torch.empty(self.wanted)
        for expert in range(self.experts):
            change[expert] = self._matrix(A, B, expert, scale)
        return change

    def _matrix(self, A: Tensor, B: Tensor, expert: int, scale: float) -> Tensor:
        """One expert's change, or its part of it; only what that takes of the factors is read and cast."""
        A, B = A[expert], B[:, :, expert]
        # Gate and up lie side by side along the stored matrix's first dimension: cut the factor, not the product.
        if self.inputs_first:
            A = A.chunk(self.place.parts, dim=1)[self.place.part]
        else:
            B = B.chunk(self.place.parts, dim=0)[self.place.part]
        product = (B.float() @ A.float()).mul_(scale)
        return product.T.contiguous() if self.inputs_first else product


@dataclass(frozen=True)
class OfBias:
    """s times the bias of a LoRA factor (`lora_bias`), on the layer's own bias."""

    module: str

    def shape(self, adapter: Adapter) -> tuple[int, ...]:
        return adapter.store.shape(adapter.factors[self.module].bias)

    def value(self, adapter: Adapter, base: TensorStore, name: str) -> Tensor:
        return adapter.store.tensor(adapter.factors[self.module].bias).float() * adapter.scale(self.module)


@dataclass(frozen=True)
class FullCopy:
    """A trained copy (`modules_to_save`, biases, a resized vocabulary) minus the base's tensor."""

    key: str
    """Name in the adapter's file."""
    place: Place

    def shape(self, adapter: Adapter) -> tuple[int, ...]:
        return self.place.cut_shape(adapter.store.shape(self.key))

    def value(self, adapter: Adapter, base: TensorStore, name: str) -> Tensor:
        trained = self.place.cut(adapter.store.tensor(self.key))
        return trained[: base.shape(name)[0]].float() - base.tensor(name).float()


@dataclass(frozen=True)
class TokenRows:
    """Rows of single tokens (`trainable_token_indices`): trained copies of those alone, every other row is unchanged."""

    key: str
    tokens: tuple[int, ...]
    rows: int
    """The base's."""
    over: str | None = None
    """Name in the adapter's file of a copy of the whole tensor, which these rows replace some of."""

    def shape(self, adapter: Adapter) -> tuple[int, ...]:
        return max([self.rows, *(token + 1 for token in self.tokens)]), adapter.store.shape(self.key)[1]

    def value(self, adapter: Adapter, base: TensorStore, name: str) -> Tensor:
        below = base.tensor(name) if self.over is None else adapter.store.tensor(self.over)
        change = torch.zeros(base.shape(name))
        trained = adapter.store.tensor(self.key)
        for row, token in enumerate(self.tokens):
            if token < self.rows:
                change[token] = trained[row].float() - below[token].float()
        return change
