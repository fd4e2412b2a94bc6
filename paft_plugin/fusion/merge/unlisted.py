"""Where mergekit's definition of an architecture and the tensors of a base model differ: in files and definitions of other years.

What the definition lists and no file has, mergekit asks for in vain; what it does not list would be lost. Llama's lacks the
biases of `attention_bias`, DeepSeek's the experts behind `first_k_dense_replace`, LLaVA's the language model; Mixtral's lists the
experts of a layer as one tensor, as transformers 5 has them in memory (mergekit 0.1.5). Here the tensors of the base's files join
the definition under the names that they have there, in a module of their own: the same planner, executor and method merge them.
Where there are any, random methods draw other masks than ``mergekit-yaml`` with the same seed, and TIES trims each expert alone.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from mergekit.architecture import ModelArchitecture, ModuleArchitecture, ModuleDefinition, WeightInfo
from mergekit.config import MergeConfiguration
from transformers import PreTrainedConfig

from paft_plugin.deltas.fit import BUFFERS
from paft_plugin.deltas.store import INPUT_EMBEDDINGS, OUTPUT_HEADS
from paft_plugin.errors import some
from paft_plugin.fusion.merge.loaders import ModelLoader
from paft_plugin.fusion.mergekit_internals import converted_names

MODULE = "paft_unlisted"
OLD_BUFFERS = (".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")
"""Tensors of old checkpoints which mergekit lists, and which transformers no longer saves."""


def places(listed: list[WeightInfo], base: ModelLoader) -> dict[str, str | None]:
    """What each tensor of the base's files is called in the merged model; None where mergekit does not list it.

    Buffers of old checkpoints, which transformers no longer saves, are left out.
    """
    found: dict[str, str] = {}
    for weight in listed:
        own = next((name for name in (weight.name, *(weight.aliases or ())) if name in base.store), None)
        if own is not None:
            found.setdefault(own, weight.name)
    return {name: found.get(name) for name in base.store.names if not name.endswith(BUFFERS)}


def without_absent(
    architecture: ModelArchitecture, config: MergeConfiguration, kind: str, loaders: Collection[ModelLoader]
) -> ModelArchitecture:
    """The architecture in which tensors are not asked for that no model's files have; `kind` is the models' type.

    Among them are those that transformers makes in loading, as of all experts of a layer: mergekit would merge and write these.
    But whoever reads a model (vLLM, llama.cpp, an older transformers) expects the base's own tensors. In slices and modules it
    stays with mergekit's way.
    """
    there = {name for loader in loaders for name in loader.store.names}
    if config.models is None:
        there |= {made for name in there for made in converted_names(kind, name)}
    modules = {
        name: module.model_copy(update={"architecture": AskingLess(module.architecture, there, module.weight_prefix)})
        for name, module in architecture.modules.items()
    }
    return architecture.model_copy(update={"modules": modules})


def lost(listed: list[WeightInfo], kind: str, unlisted: list[str]) -> list[str]:
    """Those of some unlisted tensors that mergekit would lose: of the others it makes what it lists.

    It skips what is optional and has no name of its own in the files.
    """
    asked = {weight.name for weight in listed if not weight.optional}
    return [name for name in unlisted if asked.isdisjoint(converted_names(kind, name))]


def problems_of(config: MergeConfiguration, unlisted: list[str], loaders: Collection[ModelLoader]) -> list[str]:
    """Why tensors that mergekit does not list cannot be merged under their own names in this recipe."""
    if not unlisted:
        return []
    said = f"mergekit's definition of this architecture lacks {some(unlisted)}"
    if config.models is None:
        return [f"{said}, which cannot go along in slices or modules. Give whole models, as `models:`."]
    problems = []
    vocabulary = [name for name in unlisted if name.endswith((*INPUT_EMBEDDINGS, *OUTPUT_HEADS))]
    if vocabulary and (config.tokenizer or config.tokenizer_source):
        problems.append(f"{said}, so no tokenizer can be built for {some(vocabulary)}. Remove it from the recipe.")
    for name in unlisted:
        # Whole models are read for that: only where it matters, since experts are most of a model.
        if not _is_float(name, loaders) and _is_changed(name, loaders):
            problems.append(f"{name}: holds whole numbers, and the models differ there, so it cannot be merged.")
    return problems


def with_unlisted(
    architecture: ModelArchitecture, unlisted: list[str], config: MergeConfiguration, base: ModelLoader
) -> ModelArchitecture:
    """The architecture with these tensors in a module of their own; where a parameter varies by layer, one for each stack."""
    if not unlisted:
        return architecture
    scopes = (config.parameters, *(model.parameters for model in config.models or ()))
    stacks = _in_stacks(unlisted, base) if any(map(_has_gradient, scopes)) else {"": RawNames(unlisted)}
    modules = {MODULE + stack: ModuleDefinition(architecture=raw) for stack, raw in stacks.items()}
    return architecture.model_copy(update={"modules": {**architecture.modules, **modules}})


def _in_stacks(unlisted: list[str], base: ModelLoader) -> dict[str, RawNames]:
    """Which stack of layers a tensor is in (what its name has before the layer's number; else none) → all of them."""
    stacks = dict.fromkeys(_stack_and_layer(name)[0] for name in unlisted)
    numbers = [_stack_and_layer(name) for name in base.store.names]
    return {
        stack: RawNames(
            [name for name in unlisted if _stack_and_layer(name)[0] == stack],
            1 + max(layer for other, layer in numbers if other == stack) if stack else 0,
        )
        for stack in stacks
    }


def _stack_and_layer(name: str) -> tuple[str, int]:
    found = re.match(r"(.*?)\.(\d+)\.", name)
    return (found[1], int(found[2])) if found else ("", 0)


class AskingLess(ModuleArchitecture):
    """A module whose tensors are optional where they are old buffers, or none of these names is theirs."""

    def __init__(self, module: ModuleArchitecture, names: Collection[str], prefix: str | None) -> None:
        self._module, self._names, self._prefix = module, names, prefix or ""

    def pre_weights(self, config: PreTrainedConfig) -> list[WeightInfo]:
        """Before the first layer."""
        return self._asked(self._module.pre_weights(config))

    def layer_weights(self, index: int, config: PreTrainedConfig) -> list[WeightInfo]:
        """Of one layer."""
        return self._asked(self._module.layer_weights(index, config) or [])

    def post_weights(self, config: PreTrainedConfig) -> list[WeightInfo]:
        """After the last layer."""
        return self._asked(self._module.post_weights(config))

    def num_layers_config_key(self) -> str:
        """The key of the config that has their number."""
        return self._module.num_layers_config_key()

    def num_layers(self, config: PreTrainedConfig) -> int:
        """Their number."""
        return self._module.num_layers(config)

    def _asked(self, weights: list[WeightInfo]) -> list[WeightInfo]:
        return [
            weight if self._is_there(weight) else weight.model_copy(update={"optional": True}) for weight in weights
        ]

    def _is_there(self, weight: WeightInfo) -> bool:
        names = (weight.name, *(weight.aliases or ()), *(weight.tied_names or ()))
        return not weight.name.endswith(OLD_BUFFERS) and any(self._prefix + name in self._names for name in names)


class RawNames(ModuleArchitecture):
    """Tensors by the names of the files, in layers by the number in their names if there are any, else behind them."""

    def __init__(self, names: list[str], layers: int = 0) -> None:
        self._weights = [WeightInfo(name=name) for name in names]
        self._layers = layers

    def pre_weights(self, config: PreTrainedConfig) -> list[WeightInfo]:
        """None."""
        return []

    def layer_weights(self, index: int, config: PreTrainedConfig) -> list[WeightInfo]:
        """Those with this number."""
        return [weight for weight in self._weights if _stack_and_layer(weight.name)[1] == index]

    def post_weights(self, config: PreTrainedConfig) -> list[WeightInfo]:
        """All of them, if they are in no layers."""
        return [] if self._layers else self._weights

    def num_layers(self, config: PreTrainedConfig) -> int:
        """Their number."""
        return self._layers


def left_out(base: ModelLoader, loaders: Collection[ModelLoader]) -> list[str]:
    """A sentence for each whole model that holds tensors which the base has not."""
    known = set(base.store.names)
    ignored = (*BUFFERS, *OUTPUT_HEADS)  # a tied head is in some files and not in others
    stores = {loader.store.folder: loader.store for loader in loaders}
    more = {
        folder: [name for name in store.names if name not in known and not name.endswith(ignored)]
        for folder, store in stores.items()
    }
    return [
        f"{folder}: {some(names)}: the base model has no such tensors. Left out."
        for folder, names in more.items()
        if names
    ]


def is_float(loader: ModelLoader, name: str) -> bool:
    """Whether a tensor can be merged at all."""
    return loader.stored_dtype(name).is_floating_point


def _is_float(name: str, loaders: Collection[ModelLoader]) -> bool:
    return all(is_float(loader, name) for loader in loaders if name in loader.store)


def _is_changed(name: str, loaders: Collection[ModelLoader]) -> bool:
    """Whether an adapter changes it, or whole models hold other values; one that lacks it is told of by the plan."""
    holding = [loader for loader in loaders if name in loader.store]
    if any(loader.changes(name) for loader in holding):
        return True
    stores = list({loader.store.folder: loader.store for loader in holding}.values())
    first = stores[0].tensor(name)
    return any(not torch.equal(first, store.tensor(name)) for store in stores[1:])


def _has_gradient(parameters: Mapping[str, Any] | None) -> bool:
    """Whether a parameter is a list of numbers, which mergekit spreads over the layers."""
    return any(_varies(value) for value in (parameters or {}).values())


def _varies(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(isinstance(one, int | float) or _varies(getattr(one, "value", None)) for one in value)
    return False
