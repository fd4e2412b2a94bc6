"""The base model as PEFT sees it: what its tensors are called once it is loaded, and what kind of module each belongs to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from mergekit.common import ModelReference, get_auto_cls
from torch import nn
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.pytorch_utils import Conv1D

from paft_plugin.deltas.store import TensorStore, tied_names
from paft_plugin.errors import PaftError

Kind = Literal["linear", "conv1d", "embedding", "other"]


@dataclass(frozen=True)
class Place:
    """Where a tensor of the base's files is in the loaded model."""

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
    places: dict[str, Place]
    """Tensor's name in the files → its place; a tensor that the loaded model has in another form (fused experts) is not here."""
    files: dict[str, str]
    """Parameter → name in the files."""
    tied: tuple[str, str] | None
    """Names in the files of embedding and head, if one tensor is both."""


def open_live(base: ModelReference, store: TensorStore) -> Live:
    """Build the base model on the meta device.

    Raises:
        PaftError: transformers cannot build it.
    """
    try:
        config = base.config()
        with torch.random.fork_rng(devices=[]), torch.device("meta"), no_init_weights():
            model = get_auto_cls(config.architectures[0]).from_config(config)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise PaftError(
            f"{store.folder}: transformers cannot build the model that its config.json describes ({error}), so no adapter "
            "can be checked against it. Merge without --adapter."
        ) from error
    held = dict(model.named_parameters(remove_duplicate=False))
    modules = dict(model.named_modules())
    places = {}
    parameter_of = _renaming(model)
    for name in store.names:
        parameter = parameter_of(name)
        module, _, part = parameter.rpartition(".")
        if parameter in held and tuple(held[parameter].shape) == store.shape(name):
            places[name] = Place(module, part, _kind(modules[module]))
    return Live(model, places, {place.parameter: name for name, place in places.items()}, tied_names(store))


def _renaming(model: PreTrainedModel) -> Callable[[str], str]:
    """What transformers calls a tensor of the files once it is loaded."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    renamings = [step for step in get_model_conversion_mapping(model) if isinstance(step, WeightRenaming)]
    held = model.state_dict()

    def parameter_of(name: str) -> str:
        renamed: str = rename_source_key(name, renamings, [], model.base_model_prefix, held)[0]
        return renamed

    return parameter_of


def _kind(module: nn.Module) -> Kind:
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, Conv1D):
        return "conv1d"
    return "embedding" if isinstance(module, nn.Embedding) else "other"
