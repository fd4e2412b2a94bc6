"""The result of an inspection, and its file: `inspection.json`.

    inspection = read_inspection(folder)
    inspection.deltas[0].figures.total.sparsity(1e-5)
    inspection.delta("sft").figures.cell(layer=3, module="self_attn.q_proj").gini
    inspection.pairs[0].figures.layers[3].cosine

A *module* here is a kind of module: the tensor's name without the layer's number and `.weight` (`self_attn.q_proj`,
`mlp.up_proj`, `input_layernorm`, `embed_tokens`, `self_attn.q_proj.bias`, `mlp.experts.*.up_proj`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import BeforeValidator, PlainSerializer
from pydantic.dataclasses import dataclass

from paft_plugin.deltas.measures import Histogram
from paft_plugin.errors import PaftError
from paft_plugin.files import JsonFile, write_text
from paft_plugin.inspection.measures import Interference, Measures

INSPECTION_FILE = "inspection.json"
LEVELS = 5
"""Down to the list of tensors: indented to the last number, the file would be two and a half times as large."""

M = TypeVar("M", Measures, Interference)


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
    base_fingerprint: str | None
    """None if it was not known: it takes a read of the whole base."""
    thresholds: tuple[float, ...]
    """Ascending; the keys of `Measures.small` are `threshold_key` of these."""
    densities: tuple[float, ...]
    """Ascending; the keys of `Interference.ties` and `.dare` are `threshold_key` of these. 1.0, untrimmed, is always there."""
    deltas: tuple[InspectedDelta, ...]
    """In the order in which they were given."""
    pairs: tuple[InspectedPair, ...] = ()
    """Every pair of deltas that share tensors; none if pairs were not asked for."""

    def delta(self, name: str) -> InspectedDelta:
        """The delta of this name (`KeyError` if there is none)."""
        return {delta.name: delta for delta in self.deltas}[name]

    def content(self) -> dict[str, Any]:
        return {"schema": self.SCHEMA, **self.model_dump(mode="json", by_alias=True)}

    def write(self, path: Path) -> None:
        write_text(path, _in_lines(self.content(), LEVELS) + "\n")


def check_writable(folder: Path) -> None:
    """Make the folder, so that a place that cannot be written is known before anything is measured.

    Raises:
        PaftError: it is a file, or may not be written.
    """
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
    """The inspection that `write_inspection` wrote into `folder`.

    Raises:
        PaftError: It is missing, damaged, or of another schema.
    """
    return Inspection.read(folder / INSPECTION_FILE)
