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
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from paft_plugin.deltas.measures import Histogram
from paft_plugin.errors import PaftError
from paft_plugin.files import read_json, write_text
from paft_plugin.inspection.measures import Interference, Measures

SCHEMA = 1
INSPECTION_FILE = "inspection.json"
LEVELS = 5
"""Down to the list of tensors: indented to the last number, the file would be two and a half times as large."""

M = TypeVar("M", Measures, Interference)


@dataclass(frozen=True)
class TensorFigures(Generic[M]):
    """One tensor of a delta."""

    name: str
    """As the base's files call it."""
    layer: int | None
    """None outside of the layers (embeddings, head, final norm)."""
    module: str
    shape: tuple[int, ...]
    figures: M


@dataclass(frozen=True)
class Figures(Generic[M]):
    """Figures of each tensor, and of groups of tensors."""

    tensors: tuple[TensorFigures[M], ...]
    """In the order of layers: what has none first, then by layer, within a layer by name."""
    layers: Mapping[int, M]
    modules: Mapping[str, M]
    """Over all layers."""
    cells: Mapping[tuple[int, str], M]
    """(layer, module) → figures; what lies outside of the layers has no cell."""
    total: M

    def cell(self, layer: int, module: str) -> M | None:
        """One cell of the layer × module map; None if the delta changes nothing there."""
        return self.cells.get((layer, module))

    def as_json(self) -> dict[str, Any]:
        return {
            "total": self.total.as_json(),
            "layers": {str(layer): figures.as_json() for layer, figures in self.layers.items()},
            "modules": {module: figures.as_json() for module, figures in self.modules.items()},
            "cells": [
                {"layer": layer, "module": module, "figures": figures.as_json()}
                for (layer, module), figures in self.cells.items()
            ],
            "tensors": [
                {
                    "name": tensor.name,
                    "layer": tensor.layer,
                    "module": tensor.module,
                    "shape": tensor.shape,
                    "figures": tensor.figures.as_json(),
                }
                for tensor in self.tensors
            ],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any], read: Callable[[Mapping[str, Any]], M]) -> Figures[M]:
        return cls(
            tensors=tuple(
                TensorFigures(each["name"], each["layer"], each["module"], tuple(each["shape"]), read(each["figures"]))
                for each in content["tensors"]
            ),
            layers={int(layer): read(figures) for layer, figures in content["layers"].items()},
            modules={module: read(figures) for module, figures in content["modules"].items()},
            cells={(each["layer"], each["module"]): read(each["figures"]) for each in content["cells"]},
            total=read(content["total"]),
        )


@dataclass(frozen=True)
class InspectedDelta:
    """One delta."""

    name: str
    kind: Literal["adapter", "model"]
    folder: str
    """Absolute."""
    figures: Figures[Measures]
    histogram: Histogram
    """Of all its entries."""


@dataclass(frozen=True)
class InspectedPair:
    """Two deltas over the tensors that both can change."""

    first: str
    second: str
    """Names of two `InspectedDelta`s; first comes before second in `Inspection.deltas`."""
    figures: Figures[Interference]


@dataclass(frozen=True)
class Inspection:
    """All that was measured."""

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
    pairs: tuple[InspectedPair, ...] = field(default=())
    """Every pair of deltas that share tensors; none if pairs were not asked for."""

    def delta(self, name: str) -> InspectedDelta:
        """The delta of this name (`KeyError` if there is none)."""
        for delta in self.deltas:
            if delta.name == name:
                return delta
        raise KeyError(name)

    def as_json(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dictionaries; besides the fields, the shares that follow from them."""
        return {
            "schema": SCHEMA,
            "base": self.base,
            "base_fingerprint": self.base_fingerprint,
            "thresholds": self.thresholds,
            "densities": self.densities,
            "deltas": [
                {
                    "name": delta.name,
                    "kind": delta.kind,
                    "folder": delta.folder,
                    "histogram": asdict(delta.histogram),
                    "figures": delta.figures.as_json(),
                }
                for delta in self.deltas
            ],
            "pairs": [
                {"first": pair.first, "second": pair.second, "figures": pair.figures.as_json()} for pair in self.pairs
            ],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Inspection:
        """What `as_json` gave.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: It is something else.
        """
        return cls(
            base=content["base"],
            base_fingerprint=content["base_fingerprint"],
            thresholds=tuple(content["thresholds"]),
            densities=tuple(content["densities"]),
            deltas=tuple(
                InspectedDelta(
                    each["name"],
                    each["kind"],
                    each["folder"],
                    Figures.from_json(each["figures"], Measures.from_json),
                    Histogram.from_json(each["histogram"]),
                )
                for each in content["deltas"]
            ),
            pairs=tuple(
                InspectedPair(each["first"], each["second"], Figures.from_json(each["figures"], Interference.from_json))
                for each in content["pairs"]
            ),
        )


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
    file = folder / INSPECTION_FILE
    write_text(file, _in_lines(inspection.as_json(), LEVELS) + "\n")
    return file


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
        PaftError: No such file, no JSON, or one of another schema.
    """
    file = folder / INSPECTION_FILE
    content = read_json(file)
    again = "Inspect again with `axolotl paft inspect`."
    if content.get("schema") != SCHEMA:
        raise PaftError(f"{file}: its schema is {content.get('schema')}, not {SCHEMA}. {again}")
    try:
        return Inspection.from_json(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PaftError(f"{file}: damaged or incomplete ({error!r}). {again}") from None
