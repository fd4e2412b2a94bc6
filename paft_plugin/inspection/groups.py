"""Figures of groups of tensors: their sums, taken while the tensors pass by in the order of layers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from paft_plugin.inspection.inspected import Figures, TensorFigures
from paft_plugin.inspection.measures import Interference, Measures

_LAYER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
# Containers that hold a whole decoder and say nothing of the module within.
_CONTAINERS = ("base_model.", "language_model.", "model.", "transformer.", "gpt_neox.", "decoder.")


def place_of(name: str) -> tuple[int | None, str]:
    """Layer (None outside of the layers) and kind of module.

    `model.layers.3.self_attn.q_proj.weight` → 3, `self_attn.q_proj`; `model.layers.0.mlp.experts.7.up_proj.weight` → 0,
    `mlp.experts.*.up_proj`; `model.embed_tokens.weight` → None, `embed_tokens`.
    """
    kind = name.removesuffix(".weight")
    found = _LAYER.search(kind)
    if found is not None and found.end() < len(kind):
        return int(found[1]), _NUMBER.sub("*", kind[found.end() :])
    changed = True
    while changed:
        stripped = next((kind.removeprefix(each) for each in _CONTAINERS if kind.startswith(each)), kind)
        changed, kind = stripped != kind, stripped
    return None, kind


M = TypeVar("M", Measures, Interference)
S = TypeVar("S", bound="Sums")


class Sums(Protocol):
    """Sums that can be added to sums of the same kind."""

    def add(self: S, other: S) -> None: ...


class Groups(Generic[S, M]):
    """Sums of each layer, kind of module and cell of the two, and of all, which `start` makes of nothing and `figures` evaluates.

    Only the sums of the present layer are held; of those behind, their figures.
    """

    def __init__(self, start: Callable[[], S], figures: Callable[[S], M]) -> None:
        self._start = start
        self._figures: Callable[[S], M] = figures
        self.tensors: list[TensorFigures[M]] = []
        self._layer: int | None = None
        self._cells: dict[str, S] = {}
        self._modules: dict[str, S] = {}
        self.total = start()
        """Sums of all tensors."""
        self._layer_figures: dict[int, M] = {}
        self._cell_figures: dict[tuple[int, str], M] = {}

    def add(self, name: str, shape: tuple[int, ...], sums: S, figures: M) -> None:
        """Take in one tensor, with the figures that are its own; layers must come one after the other."""
        layer, module = place_of(name)
        if layer != self._layer:
            self._end_layer()
            self._layer = layer
        self.tensors.append(TensorFigures(name, layer, module, shape, figures))
        self.total.add(sums)
        self._modules.setdefault(module, self._start()).add(sums)
        if layer is not None:
            self._cells.setdefault(module, self._start()).add(sums)

    def _end_layer(self) -> None:
        if self._layer is not None:
            whole = self._start()
            for module, sums in sorted(self._cells.items()):
                self._cell_figures[self._layer, module] = self._figures(sums)
                whole.add(sums)
            self._layer_figures[self._layer] = self._figures(whole)
        self._cells = {}

    def finished(self) -> Figures[M]:
        """All figures, once every tensor was taken in."""
        self._end_layer()
        self._layer = None
        return Figures(
            tensors=tuple(self.tensors),
            layers=self._layer_figures,
            modules={module: self._figures(sums) for module, sums in sorted(self._modules.items())},
            cells=self._cell_figures,
            total=self._figures(self.total),
        )
