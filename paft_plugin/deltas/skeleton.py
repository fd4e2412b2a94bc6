"""What a base model's tensors are called once transformers has loaded them: so an adapter names them, but not the files.

Mixture-of-experts checkpoints hold one matrix per expert, which transformers 5 fuses into 3-D parameters on loading; other
checkpoints only go by other names (`embed_out` for `lm_head`). The rules are transformers' own; nothing is loaded, the model
is built without memory. Shapes: `E` experts, `O` output features, `I` input features.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from paft_plugin.deltas.store import TensorStore
from paft_plugin.errors import PaftError, quietly
from paft_plugin.files import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COUNTS = re.compile(r"layer|expert|block|depth|stage|group")
"""Keys of a config that say how many modules there are; the largest models have some hundreds."""
MOST_MODULES = 100_000
# Chains of transformers' operations that can be taken back: experts stacked, and also gate and up side by side in each.
STACKED = ["MergeModulelist(dim=0)"]
STACKED_SIDE_BY_SIDE = ["MergeModulelist(dim=0)", "Concatenate(dim=1)"]


@dataclass(frozen=True)
class ParameterPlace:
    """Where a tensor of the files lies in the parameter that the loaded model makes of it."""

    parameter: str
    """The parameter's name in the loaded model."""
    expert: int | None = None
    """Index along the first dimension; None if the tensor is the whole parameter."""
    part: int = 0
    """Of several matrices side by side within an expert (gate and up), which one."""
    parts: int = 1

    @property
    def is_whole(self) -> bool:
        """Whether the tensor is the whole parameter."""
        return self.expert is None

    def cut(self, whole: Tensor) -> Tensor:
        """The tensor of the files out of the whole parameter."""
        if self.expert is None:
            return whole
        return whole[self.expert].chunk(self.parts, dim=0)[self.part]

    def cut_shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of what `cut` makes of a parameter of shape `whole`; empty if there is no such part of it."""
        if self.expert is None:
            return whole
        return (whole[1] // self.parts, *whole[2:]) if len(whole) > 1 and self.expert < whole[0] else ()


@dataclass(frozen=True)
class Skeleton:
    """A model without its weights."""

    places: dict[str, ParameterPlace]
    """Tensor's name in the files → where the loaded model has it; old buffers that no model loads any more are not here."""
    shapes: dict[str, tuple[int, ...]]
    """Parameter's name in the loaded model → its shape; per module in the order of registration."""
    inputs_first: frozenset[str]
    """Modules whose 3-D parameters are ``(E, I, O)`` (GPT-OSS) and not ``(E, O, I)``: PEFT asks them for `is_transposed`."""
    unclear: dict[str, str] = field(default_factory=dict)
    """Parameter → how transformers makes it of the files, where that is more than stacking: a delta can't be taken back."""
    parameter_of: Callable[[str], str] = field(default=str, repr=False, compare=False)
    """Any name that transformers knows for a parameter, an older one too → its name in the loaded model."""

    @cached_property
    def files(self) -> dict[str, list[str]]:
        """Parameter → names in the files of what makes it up, sorted."""
        files = defaultdict(list)
        for name, place in sorted(self.places.items()):
            files[place.parameter].append(name)
        return dict(files)

    @cached_property
    def own(self) -> dict[str, list[str]]:
        """Module → full names of its own parameters, in the order in which it registers them."""
        own = defaultdict(list)
        for name in self.shapes:
            own[name.rpartition(".")[0]].append(name)
        return dict(own)


def open_skeleton(base: TensorStore) -> Skeleton | str:
    """The skeleton of a base model, or why there is none, in one sentence; takes seconds for a large model."""
    try:
        model = build_model(base.folder)
    # Whatever a stranger's config makes transformers raise, the answer is the same.
    except Exception as error:
        return f"transformers cannot build the model of {base.folder}/config.json ({error})"
    return skeleton_of(model, base)


def build_model(folder: Path) -> PreTrainedModel:
    """The model that a folder's config describes, on the meta device: without weights, and without a random number drawn."""
    # Slow to import, and only adapters whose names differ from the files' need it.
    import transformers
    from transformers.initialization import no_init_weights

    if endless := too_many(read_json(folder / "config.json")):
        raise PaftError(f"{folder / 'config.json'}: {endless}, more than {MOST_MODULES}. Correct it.")
    with quietly():  # transformers' warnings would show what the config says, as it is
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    named = [getattr(transformers, name, None) for name in config.architectures or []]
    kinds = [kind for kind in named if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)]
    with quietly(), torch.random.fork_rng(devices=[]), torch.device("meta"), no_init_weights():
        return kinds[0](config) if kinds else transformers.AutoModelForCausalLM.from_config(config)


def too_many(config: object) -> str:
    """A number in a config that would have transformers build modules for ever; empty if there is none."""
    if isinstance(config, list):
        return next(filter(None, map(too_many, config)), "")
    if not isinstance(config, dict):
        return ""
    for key, value in config.items():
        if COUNTS.search(key) and isinstance(value, (int, float)) and value > MOST_MODULES:
            return f"{key} is {value}"
    return too_many(list(config.values()))


def skeleton_of(model: PreTrainedModel, base: TensorStore) -> Skeleton:
    """How the tensors of a base's files are called in its model, by the rules by which transformers loads them."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    conversions = get_model_conversion_mapping(model)
    renamings = [step for step in conversions if isinstance(step, WeightRenaming)]
    converters = [step for step in conversions if isinstance(step, WeightConverter)]
    held = model.state_dict()

    def parameter_of(name: str) -> str:
        parameter: str = rename_source_key(name, renamings, [], model.base_model_prefix, held)[0]
        return parameter

    places, unclear = {}, {}
    for name in base.names:
        parameter, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, held)
        converter: Any = next((step for step in converters if pattern in step.source_patterns), None)
        place: ParameterPlace | None = ParameterPlace(parameter)
        if converter is not None:
            place = _place_in_stack(parameter_of(name), parameter, pattern, converter)
        if place is None:
            unclear[parameter] = ", ".join(map(repr, converter.operations))
        elif parameter in held:
            places[name] = place
    inputs_first = {name for name, module in model.named_modules() if getattr(module, "is_transposed", False)}
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters(remove_duplicate=False)}
    return Skeleton(places, shapes, frozenset(inputs_first), unclear, parameter_of)


def _place_in_stack(name: str, parameter: str, pattern: str | None, converter: Any) -> ParameterPlace | None:
    """Where a converter of transformers, which knows a tensor by `pattern`, puts it; None if it does more than to stack.

    `name` is the tensor's after all that only renames, `parameter` what the converter makes of it.
    """
    chain = list(map(repr, converter.operations))
    number = re.search(str(pattern).replace("*.", r"(\d+)\."), name)
    if chain not in (STACKED, STACKED_SIDE_BY_SIDE) or len(converter.target_patterns) != 1 or number is None:
        return None
    sources = converter.source_patterns if chain == STACKED_SIDE_BY_SIDE else [pattern]
    return ParameterPlace(parameter, int(number[1]), sources.index(pattern), len(sources))
