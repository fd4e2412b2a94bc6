"""The summands of an adapter's delta on one base tensor, each computed alone, in fp32, from what lies in the adapter's file.

Any range of a summand's rows can be had without the others: a large tensor need never be there as a whole.

Shapes: `E` experts, `r` rank, `O` output features, `I` input features, `V` vocabulary, `D` model dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from paft_plugin.deltas.adapter import Adapter
from paft_plugin.deltas.skeleton import ParameterPlace
from paft_plugin.deltas.store import TensorStore

Rows = Callable[[int, int], Tensor]
"""(start, stop) → those of a tensor's slices along its first dimension, in fp32."""


class Change(Protocol):
    """One summand of δ."""

    def shape(self, adapter: Adapter) -> tuple[int, ...]:
        """Of the summand, read from headers; a grown vocabulary has more rows than the base's tensor."""

    def rows(self, adapter: Adapter, base: TensorStore, name: str) -> Rows:
        """The summand in fp32, for the base tensor `name`. What it is made of is read once, here."""


@dataclass(frozen=True)
class LowRank:
    """s·B·A of a linear layer, ``(O, I)``; transposed for an embedding, ``(V, D)``, and for a Conv1D layer, ``(I, O)``."""

    module: str
    transposed: bool

    def shape(self, adapter: Adapter) -> tuple[int, ...]:
        shape = adapter.shape(self.module)
        return shape[::-1] if self.transposed else shape

    def rows(self, adapter: Adapter, base: TensorStore, name: str) -> Rows:
        A, B = adapter.matrices(self.module)
        scale = adapter.scale(self.module)

        def some(start: int, stop: int) -> Tensor:
            # The order of PEFT's get_delta_weight: product first, then the scale.
            if self.transposed:
                return (B @ A[:, start:stop]).mul_(scale).T.contiguous()
            return (B[start:stop] @ A).mul_(scale)

        return some

    def factors(self, adapter: Adapter, base: TensorStore, name: str) -> tuple[Tensor, Tensor]:
        """L ``(rows, r)`` and R ``(r, columns)`` with the summand L·R, in the base tensor's orientation."""
        A, B = adapter.matrices(self.module)
        left, right = (A.T, B.T) if self.transposed else (B, A)
        return left[: base.shape(name)[0]] * adapter.scale(self.module), right


@dataclass(frozen=True)
class OfParameter:
    """s·B·A of a parameter that `target_parameters` names: fused experts, ``(E, O, I)`` or ``(E, I, O)``, or a matrix.

    PEFT keeps the factors of all experts in two matrices: A is ``(E·r, I)``, expert by expert; B is ``(O, r·E)``, in which the
    expert is the *faster* index.
    """

    module: str
    """Under which the adapter's file holds the factors."""
    place: ParameterPlace
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

    def rows(self, adapter: Adapter, base: TensorStore, name: str) -> Rows:
        factors = adapter.factors[self.module]
        A = adapter.store.tensor(factors.A).unflatten(0, (self.experts, -1))  # (E, r, I)
        B = adapter.store.tensor(factors.B).unflatten(1, (-1, self.experts))  # (O, r, E)
        scale = adapter.scale_of(self.place.parameter, rank=A.shape[1])
        if len(self.wanted) == 2 or self.place.expert is not None:
            matrix = self._matrix(A, B, self.place.expert or 0, scale)
            return lambda start, stop: matrix[start:stop]

        def some(start: int, stop: int) -> Tensor:
            change = torch.empty(stop - start, *self.wanted[1:])
            for expert in range(start, stop):
                change[expert - start] = self._matrix(A, B, expert, scale)
            return change

        return some

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

    def rows(self, adapter: Adapter, base: TensorStore, name: str) -> Rows:
        bias = adapter.store.tensor(adapter.factors[self.module].bias).float() * adapter.scale(self.module)
        return lambda start, stop: bias[start:stop]


@dataclass(frozen=True)
class FullCopy:
    """A trained copy (`modules_to_save`, biases, a resized vocabulary) minus the base's tensor."""

    key: str
    """Name in the adapter's file."""
    place: ParameterPlace

    def shape(self, adapter: Adapter) -> tuple[int, ...]:
        return self.place.cut_shape(adapter.store.shape(self.key))

    def rows(self, adapter: Adapter, base: TensorStore, name: str) -> Rows:
        trained, before = self.place.cut(adapter.store.tensor(self.key)), base.tensor(name)
        return lambda start, stop: trained[start:stop].float() - before[start:stop].float()


@dataclass(frozen=True)
class TokenRows:
    """Rows of single tokens (`trainable_token_indices`): trained copies of those alone, every other row is unchanged."""

    key: str
    tokens: tuple[int, ...]
    height: int
    """Rows of the base's tensor."""
    over: str | None = None
    """Name in the adapter's file of a copy of the whole tensor, which these rows replace some of."""

    def shape(self, adapter: Adapter) -> tuple[int, ...]:
        return max([self.height, *(token + 1 for token in self.tokens)]), adapter.store.shape(self.key)[1]

    def rows(self, adapter: Adapter, base: TensorStore, name: str) -> Rows:
        below = base.tensor(name) if self.over is None else adapter.store.tensor(self.over)
        trained = adapter.store.tensor(self.key)

        def some(start: int, stop: int) -> Tensor:
            change = torch.zeros(stop - start, below.shape[1])
            for row, token in enumerate(self.tokens):
                if start <= token < stop:
                    change[token - start] = trained[row].float() - below[token].float()
            return change

        return some
