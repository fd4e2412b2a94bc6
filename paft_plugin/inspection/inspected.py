"""The result of an inspection, how figures of groups of tensors are gathered in it (`Groups`), and its file: `inspection.json`.

    inspection = read_inspection(folder)
    inspection.deltas[0].figures.total.sparsity(1e-5)
    inspection.delta("sft").figures.cell(layer=3, module="self_attn.q_proj").gini
    inspection.pairs[0].figures.layers[3].cosine

A *module* here is a kind of module: the tensor's name without the layer's number and `.weight` (`self_attn.q_proj`,
`mlp.up_proj`, `input_layernorm`, `embed_tokens`, `self_attn.q_proj.bias`, `mlp.experts.*.up_proj`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, Protocol, TypeVar

from pydantic import BeforeValidator, PlainSerializer
from pydantic.dataclasses import dataclass

from paft_plugin.deltas.measures import Histogram
from paft_plugin.errors import PaftError
from paft_plugin.files import JsonFile, write_text
from paft_plugin.inspection.measures import Elections, Interference, Measures

INSPECTION_FILE = "inspection.json"
LEVELS = 5
"""Down to the list of tensors: indented to the last number, the file would be two and a half times as large."""

M = TypeVar("M", Measures, Interference, Elections)
S = TypeVar("S", bound="Sums")

_LAYER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
# Containers that hold a whole decoder and say nothing of the module within.
_CONTAINERS = ("base_model.", "language_model.", "model.", "transformer.", "gpt_neox.", "decoder.")


@dataclass(frozen=True)
class TensorFigures(Generic[M]):
    """What was measured of one tensor."""

    name: str
    """As the base's files call it."""
    layer: int | None
    """None outside of the layers (embeddings, head, final norm)."""
    module: str
    shape: tuple[int, ...]
    figures: M


def _cells_of_rows(rows: Any) -> Any:
    """Rows of a file as a mapping by (layer, module); what is no list of rows is left to pydantic."""
    if isinstance(rows, list):
        return {(row["layer"], row["module"]): row["figures"] for row in rows}
    return rows


def _rows_of_cells(cells: Mapping[tuple[int, str], Any]) -> list[dict[str, Any]]:
    return [{"layer": layer, "module": module, "figures": figures} for (layer, module), figures in cells.items()]


@dataclass(frozen=True)
class Figures(Generic[M]):
    """Figures of each tensor, and of groups of tensors."""

    total: M
    layers: Mapping[int, M]
    modules: Mapping[str, M]
    """Over all layers."""
    cells: Annotated[Mapping[tuple[int, str], M], BeforeValidator(_cells_of_rows), PlainSerializer(_rows_of_cells)]
    """(layer, module) → figures; what lies outside of the layers has no cell. JSON has no pairs for keys, so a list of rows."""
    tensors: tuple[TensorFigures[M], ...]
    """In the order of layers: what has none first, then by layer, within a layer by name."""

    def cell(self, layer: int, module: str) -> M | None:
        """One cell of the layer × module map; None if the delta changes nothing there."""
        return self.cells.get((layer, module))


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


@dataclass(frozen=True)
class InspectedDelta:
    """What was measured of one delta."""

    name: str
    kind: Literal["adapter", "model"]
    folder: str
    """Absolute."""
    histogram: Histogram
    """Of all its entries."""
    figures: Figures[Measures]


@dataclass(frozen=True)
class InspectedPair:
    """Two deltas over the tensors that both can change."""

    first: str
    second: str
    """Names of two `InspectedDelta`s; first comes before second in `Inspection.deltas`."""
    figures: Figures[Interference]


class Inspection(JsonFile):
    """`inspection.json`: all that was measured; in the file, besides these fields, the shares that follow from them."""

    SCHEMA: ClassVar[int] = 1
    AGAIN: ClassVar[str] = "Inspect again with `axolotl paft inspect`."

    base: str
    """Absolute folder."""
    thresholds: tuple[float, ...]
    """Ascending; the keys of `Measures.small` are `threshold_key` of these."""
    densities: tuple[float, ...]
    """Ascending; the keys of `Interference.ties` and `.dare` are `threshold_key` of these. 1.0, untrimmed, is always there."""
    deltas: tuple[InspectedDelta, ...]
    """In the order in which they were given."""
    pairs: tuple[InspectedPair, ...] = ()
    """Every pair of deltas that share tensors; none if pairs were not asked for."""
    elections: Figures[Elections] | None = None
    """All deltas together but dense twins; None of fewer than three, or if pairs were not asked for."""

    def delta(self, name: str) -> InspectedDelta:
        """The delta of this name (`KeyError` if there is none)."""
        return {delta.name: delta for delta in self.deltas}[name]

    @property
    def apart(self) -> list[tuple[str, str]]:
        """Every two deltas that change no tensor in common, so that nothing of one can get into the other's way."""
        changed = {delta.name: {tensor.name for tensor in delta.figures.tensors} for delta in self.deltas}
        return [(one, other) for one, other in combinations(changed, 2) if not changed[one] & changed[other]]

    def content(self) -> dict[str, Any]:
        without = {"elections"} if self.elections is None else set()
        return {"schema": self.SCHEMA, **self.model_dump(mode="json", by_alias=True, exclude=without)}

    def write(self, path: Path) -> None:
        write_text(path, _in_lines(self.content(), LEVELS) + "\n")


def check_writable(folder: Path) -> None:
    """Make the folder, so that a place that may not be written is known (`PaftError`) before anything is measured."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".paft-inspect"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise PaftError(
            f"{folder}: cannot be written ({error.strerror}). Give a folder that you may write to as --output-dir."
        ) from None


def write_inspection(inspection: Inspection, folder: Path) -> Path:
    """Write `inspection.json` into `folder`, atomically; returns the file."""
    inspection.write(folder / INSPECTION_FILE)
    return folder / INSPECTION_FILE


def _in_lines(value: Any, levels: int, indent: str = "") -> str:
    """JSON with that many levels laid out; what lies deeper, the figures of one tensor or group, is a line of its own."""
    if not levels or not value or not isinstance(value, dict | list | tuple):
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    inner = indent + "  "
    if isinstance(value, dict):
        items = [
            f"{json.dumps(key, ensure_ascii=False)}: {_in_lines(each, levels - 1, inner)}"
            for key, each in value.items()
        ]
    else:
        items = [_in_lines(each, levels - 1, inner) for each in value]
    start, end = "{}" if isinstance(value, dict) else "[]"
    return f"{start}\n{inner}" + f",\n{inner}".join(items) + f"\n{indent}{end}"


def read_inspection(folder: Path) -> Inspection:
    """The inspection that `write_inspection` wrote into `folder`; `PaftError` if missing, damaged, or of another schema."""
    return Inspection.read(folder / INSPECTION_FILE)
