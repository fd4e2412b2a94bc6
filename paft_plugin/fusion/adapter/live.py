"""The base model as PEFT sees it: where each tensor of its files is once it is loaded, and in what kind of module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from paft_plugin.deltas.skeleton import build_model, skeleton_of
from paft_plugin.deltas.store import TensorStore, tied_names
from paft_plugin.errors import PaftError

Kind = Literal["linear", "conv1d", "embedding", "other"]


@dataclass(frozen=True)
class Slot:
    """A parameter of the loaded model that is a tensor of the base's files as it is."""

    module: str
    part: str
    """Name of the parameter within its module: `weight`, `bias` …"""
    kind: Kind

    @property
    def parameter(self) -> str:
        """The parameter's full name."""
        return f"{self.module}.{self.part}"

    @property
    def has_factors(self) -> bool:
        """Whether PEFT can put LoRA factors on it."""
        return self.kind != "other" and self.part == "weight"

    @property
    def transposed(self) -> bool:
        """Whether the weight is (B·A)ᵀ."""
        return self.kind in ("conv1d", "embedding")


@dataclass(frozen=True)
class Live:
    """A base model without its weights."""

    model: PreTrainedModel
    slots: dict[str, Slot]
    """Tensor's name in the files → its slot; a tensor that the loaded model has in another form (fused experts) is not here."""
    files: dict[str, str]
    """Parameter → name in the files."""
    tied: tuple[str, str] | None
    """Names in the files of embedding and head, if one tensor is both."""


def open_live(store: TensorStore) -> Live:
    """Build the base model on the meta device.

    Raises:
        PaftError: transformers cannot build it.
    """
    try:
        model = build_model(store.folder)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise PaftError(
            f"{store.folder}: transformers cannot build the model that its config.json describes ({error}), so no adapter "
            "can be checked against it. Merge without --adapter."
        ) from error
    skeleton = skeleton_of(model, store)
    slots = {}
    for name, place in skeleton.places.items():
        if place.is_whole and skeleton.shapes.get(place.parameter) == store.shape(name):
            module, _, part = place.parameter.rpartition(".")
            slots[name] = Slot(module, part, _kind_of_module(model.get_submodule(module)))
    return Live(model, slots, {slot.parameter: name for name, slot in slots.items()}, tied_names(store))


def _kind_of_module(module: nn.Module) -> Kind:
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, Conv1D):
        return "conv1d"
    return "embedding" if isinstance(module, nn.Embedding) else "other"
