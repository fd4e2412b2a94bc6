"""The base model as PEFT sees it: where each tensor of its files is, the config of an adapter on it, and whether that loads.

The check is against PEFT itself, which skips what it doesn't know without a word.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

from mergekit.common import ModelReference
from peft import LoraConfig, TaskType, get_peft_model
from peft.utils import get_peft_model_state_dict
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from paft_plugin.deltas.adapter import PREFIX
from paft_plugin.deltas.skeleton import build_model, skeleton_of
from paft_plugin.deltas.store import TensorStore, tied_names
from paft_plugin.errors import PaftError, some

Shape = tuple[int, ...]
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

    @property
    def is_bias(self) -> bool:
        """Whether it is the bias of a linear layer: PEFT keeps whole copies of those by `bias`, not by `modules_to_save`."""
        return self.kind in ("linear", "conv1d") and self.part == "bias"

    def key_of_copy(self, is_adapted: bool) -> str:
        """The name of a whole copy in the adapter's file: PEFT puts the bias of a module with factors below `base_layer`."""
        inside = ".base_layer" if is_adapted else ""
        return f"{PREFIX}{self.module}{inside}.{self.part}"

    def keys_of_factors(self) -> tuple[str, str]:
        """The names of A and B in the adapter's file."""
        stem = f"{PREFIX}{self.module}.lora_"
        if self.kind == "embedding":
            return f"{stem}embedding_A", f"{stem}embedding_B"
        return f"{stem}A.weight", f"{stem}B.weight"


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


def lora_config(
    base: ModelReference, live: Live, adapted: Mapping[str, tuple[Slot, int]], saved: Collection[str], biases: bool
) -> LoraConfig:
    """A config under which every module's scale is 1: α = r, in each module and at the top.

    So r is the greatest rank, and who reads α/r from the top alone (vLLM) gets 1 for every module, too. `adapted` holds
    each module's slot and rank; `saved` names those that are whole copies, and `biases` says whether some biases are beside them.
    """
    ranks = {module: rank for module, (_, rank) in adapted.items()}
    top = max(ranks.values())
    pattern = _rank_pattern(ranks, top)
    return LoraConfig(
        base_model_name_or_path=base.model.path,
        revision=base.model.revision,
        task_type=TaskType.CAUSAL_LM,
        inference_mode=True,
        r=top,
        lora_alpha=top,
        rank_pattern=dict(pattern),
        alpha_pattern=dict(pattern),
        target_modules=_target_modules(live, set(ranks)),
        modules_to_save=sorted(saved) or None,
        bias="all" if biases else "none",
        fan_in_fan_out=any(slot.kind == "conv1d" for slot, _ in adapted.values()),
        ensure_weight_tying=live.tied is not None and live.slots[live.tied[0]].module in saved,
    )


def wanted_by_peft(live: Live, config: LoraConfig) -> dict[str, Shape]:
    """Names and shapes of the tensors that PEFT would save for this config; `live`'s model is wrapped for good."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # A copy, because PEFT writes what it finds in the model into the config.
        model = get_peft_model(live.model, deepcopy(config))
    wanted = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {key: tuple(tensor.shape) for key, tensor in wanted.items()}


def check_accepted(wanted: Mapping[str, Shape], held: Mapping[str, Shape], base: str) -> None:
    """Refuse to write what PEFT would not load completely: it skips what it doesn't know without a word.

    Raises:
        PaftError: A tensor that PEFT does not know, has in another shape, or misses.
    """
    strange = [key for key, shape in held.items() if wanted.get(key) != shape]
    # With `bias: all` PEFT saves every bias, changed or not; those that aren't here stay the base's.
    missing = [key for key in wanted if key not in held and not key.endswith(".bias")]
    if strange or missing:
        raise PaftError(
            f"{base}: PEFT would not load the fused adapter as it is meant (unknown to it: {some(strange) or 'none'}; missing: "
            f"{some(missing) or 'none'}). Merge without --adapter."
        )


def _rank_pattern(ranks: Mapping[str, int], top: int) -> dict[str, int]:
    """Rank of each module that has not the greatest: by its own short name where all modules of that name agree."""
    by_name: dict[str, set[int]] = {}
    for module, rank in ranks.items():
        by_name.setdefault(module.rpartition(".")[2], set()).add(rank)
    patterns = {}
    for module, rank in ranks.items():
        name = module.rpartition(".")[2]
        if rank != top:
            # PEFT lets anything precede a pattern; the caret keeps it out.
            patterns[name if len(by_name[name]) == 1 else f"^{module}"] = rank
    return patterns


def _target_modules(live: Live, modules: set[str]) -> list[str]:
    """The adapted modules, by their short name where that means no others."""
    counts = Counter(name.rpartition(".")[2] for name, _ in live.model.named_modules())
    wanted = Counter(module.rpartition(".")[2] for module in modules)
    return sorted({name if counts[name := module.rpartition(".")[2]] == wanted[name] else module for module in modules})
