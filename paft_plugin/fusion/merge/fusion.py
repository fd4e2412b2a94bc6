"""A recipe made ready to merge: its models open, what cannot be done refused, its tensors one by one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from mergekit.architecture import ConfiguredModelArchitecture, ModelArchitecture, get_architecture_info
from mergekit.common import ModelPath, ModelReference
from mergekit.config import InputModelDefinition, MergeConfiguration
from mergekit.merge_methods import get as method_called
from mergekit.options import MergeOptions
from mergekit.plan import MergePlanner
from mergekit.tokenizer import TokenizerInfo
from peft import PeftConfig, get_peft_model
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from paft_plugin.deltas.belongs import is_finite
from paft_plugin.deltas.skeleton import build_model
from paft_plugin.deltas.store import TensorStore, tied_names
from paft_plugin.errors import PaftError, one_line, some
from paft_plugin.fusion.merge.configuration import read_recipe, references, without_adapters
from paft_plugin.fusion.merge.loaders import AdapterLoader, ModelLoader, open_loaders
from paft_plugin.fusion.merge.plan import MergePlan
from paft_plugin.fusion.merge.selection import fast_selection
from paft_plugin.fusion.merge.unlisted import (
    is_float,
    left_out,
    lost,
    places,
    problems_of,
    with_unlisted,
    without_absent,
)
from paft_plugin.fusion.merge.untouched import draws
from paft_plugin.fusion.mergekit_internals import forget_architectures, model_out_config, open_models
from paft_plugin.fusion.recipe.render import read_header
from paft_plugin.machine import usable_device

# mergekit prints the whole config in which it misses a key.
WHOLE_CONFIG = (
    r"Config .* has no attribute (\w+)",
    r"mergekit's definition of this architecture looks for \1 in its config, where this version of transformers has it "
    "elsewhere: it cannot be merged.",
)


class NotFiniteError(PaftError):
    """A fused tensor that would hold NaN or infinity where the base has none."""


class UnlistedError(PaftError):
    """Tensors of the base that mergekit's definition lacks, and that cannot be merged under their own names."""


@dataclass
class Fusion:
    """A recipe that is ready to merge. Nothing has been computed, and of its models only headers were read."""

    recipe: Path
    text: str
    config: MergeConfiguration
    """With absolute paths."""
    loaders: dict[ModelReference, ModelLoader]
    options: MergeOptions
    seed: int
    architecture: ModelArchitecture
    """With the tensors of the base that mergekit's definition does not list."""
    model_config: PreTrainedConfig
    """Of the merged model."""
    places: dict[str, str]
    """What each tensor of the base's files is called in the merged model."""
    unlisted: list[str]
    """Those of them that mergekit's definition does not list."""
    lacking: list[str]
    """Those of these of which mergekit makes no others either: it would lose them."""
    tokenizer: PreTrainedTokenizerBase | None = field(default=None, init=False)
    """The one that `tokenizer:` in the recipe asks for, once all tensors came."""
    notes: list[str] = field(default_factory=list, init=False)
    """What is to be said of the tensors that came."""

    def tensors(self, quiet: bool = True) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, fused tensor in the recipe's `out_dtype`, on the CPU) in mergekit's order, each computed when asked for.

        Every call begins anew, from the same seed, and neither disturbs nor is disturbed by what else torch draws. Until its
        end (or `close()`), mergekit's global cache of open models holds this recipe's.

        Raises:
            NotFiniteError: A fused tensor would hold NaN or infinity where the base has none.
            PaftError: A parameter that the method does not take, or tensors that don't fit one another.
        """
        with self.planned() as plan:
            yield from self.run(plan, quiet)

    @property
    def base(self) -> ModelLoader:
        """Of the model whose tensors the merged one has."""
        return self.loaders[self.config.base_model or references(self.config)[0]]

    @property
    def whole_numbers(self) -> list[str]:
        """Unlisted tensors that hold no floats, in which all models agree: they are copied."""
        return [name for name in self.unlisted if not is_float(self.base, name)]

    @contextmanager
    def planned(self) -> Iterator[MergePlan]:
        """For the time of the context: mergekit's plan, for `run` to carry out once, with our models in its cache."""
        with open_models(self.loaders, self.options), fast_selection(), self._mistakes():
            # Planning rewrites the configuration that it is given.
            config = self.config.model_copy(deep=True)
            yield MergePlan(MergePlanner(config, self.architecture, self.options, self.model_config), self.loaders)

    def run(self, plan: MergePlan, quiet: bool = True) -> Iterator[tuple[str, Tensor]]:
        """As `tensors`, of a plan that is made already."""
        random = draws(method_called(self.config.merge_method))
        stream = Stream(self.seed, self.loaders, self.options.device) if random else None
        items = plan.run(quiet)
        self.notes[:] = self._notes_on_unlisted()
        while True:
            with stream.flowing() if stream else nullcontext():
                item = next(items, None)
            if item is None:
                break
            if isinstance(item, TokenizerInfo):
                self.tokenizer = item.tokenizer
            else:
                if not is_finite(item[1]):
                    self._refuse_unless_before(plan, *item)
                yield item
        for name in self.whole_numbers:
            yield name, self.base.store.tensor(name)

    def _notes_on_unlisted(self) -> list[str]:
        notes = left_out(self.base, self.loaders.values())
        if self.lacking:
            notes.append(
                f"mergekit's definition of this architecture lacks {some(self.lacking)}, without which mergekit-yaml would "
                "write the model. They are merged here under the names of the files; what no branch changes stays as it is."
            )
        return notes

    def _refuse_unless_before(self, plan: MergePlan, name: str, tensor: Tensor) -> None:
        """Let NaN and infinity pass where the base has them, too, and note that."""
        spots = ~tensor.isfinite()
        befores = plan.before(name)
        if befores and not any(one.shape != tensor.shape or bool((spots & one.isfinite()).any()) for one in befores):
            self.notes.append(
                f"{name}: NaN or infinity in {int(spots.sum())} entries, as in the base model. They stay."
            )
            return
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise NotFiniteError(
            f"{self.recipe}: {name} would be NaN or infinite in {int(spots.sum())} of its {tensor.numel()} entries, where the "
            f"base is not. A weight, lambda, an adapter's lora_alpha or its factors are too large for {dtype}, or a model is "
            "broken. Correct that, or merge with a wider dtype and out_dtype."
        )

    @contextmanager
    def _mistakes(self) -> Iterator[None]:
        """What mergekit's own checks find is a mistake in the recipe."""
        try:
            yield
        except PaftError:
            raise
        except (RuntimeError, ValueError) as error:
            raise PaftError(f"{self.recipe}: {one_line(error)}") from error
        except (LookupError, AssertionError) as error:
            if not (self.config.tokenizer or self.config.tokenizer_source):
                raise
            raise PaftError(
                f"{self.recipe}: mergekit cannot align the vocabularies ({type(error).__name__}: {one_line(error)}). A token "
                "that the recipe or a tokenizer names has no row in its model. Correct that, or take `source: base`."
            ) from error


def open_fusion(recipe: Path, seed: int | None = None, device: str = "auto", kind: type[Fusion] = Fusion) -> Fusion:
    """Read a recipe (any mergekit YAML of merge methods) and open what it merges.

    Relative paths in it are meant from the current folder, and methods that draw at random draw by the seed, both as with
    ``mergekit-yaml --random-seed``; without a seed by that of the command in the recipe's header, or else by 0. Tensors are
    merged on `device`: `cpu`, `cuda` …, or `auto` for a GPU where there is one.

    Raises:
        PaftError: Everything that is wrong with the recipe or its models.
    """
    config, text = read_recipe(recipe)
    header = read_header(text)
    seed = seed if seed is not None else (header and header.seed) or 0
    try:
        method_called(config.merge_method)
    except RuntimeError:
        raise PaftError(f"{recipe}: merge_method {config.merge_method}: mergekit has no such method.") from None
    options = MergeOptions(device=device if device == "auto" else usable_device(device, "--device"))
    loaders = open_loaders(references(config))
    bare = without_adapters(config)
    base = loaders[config.base_model or references(config)[0]]
    architecture, model_config, base_config = _architecture_of(bare, options, recipe)
    if strange := [name for name in config.modules or {} if name not in architecture.modules]:
        raise PaftError(
            f"{recipe}: modules: {some(strange)}: the model has none so called. There are {some([*architecture.modules])}."
        )
    listed = architecture.all_weights(base_config)
    found = places(listed, base)
    unlisted = [name for name, place in found.items() if place is None]
    lacking = lost(listed, base_config.model_type, unlisted)
    architecture = without_absent(architecture, config, base_config.model_type, loaders.values())
    if config.models is None:  # slices and modules, where mergekit's way has to do
        unlisted = lacking
    if problems := problems_of(config, unlisted, loaders.values()):
        raise UnlistedError([f"{recipe}: {problem}" for problem in problems])
    architecture = with_unlisted(architecture, [name for name in unlisted if is_float(base, name)], config, base)
    names = {name: place or name for name, place in found.items()}
    return kind(recipe, text, config, loaders, options, seed, architecture, model_config, names, unlisted, lacking)


def behind_layers(base: TensorStore) -> list[str]:
    """The tensors of a base that mergekit merges behind its last layer: the last norm, and a head that is not the embedding.

    Without those whose names are a part of another tensor's: a filter in a recipe would take both.

    Raises:
        PaftError: mergekit does not know such models.
    """
    reference = ModelReference(model=ModelPath(path=str(base.folder)))
    bare = MergeConfiguration(merge_method="linear", models=[InputModelDefinition(model=reference)])
    architecture, _, config = _architecture_of(bare, MergeOptions(), base.folder)
    model = ConfiguredModelArchitecture(info=architecture, config=config)
    weights = [weight for name in architecture.modules for weight in model.get_module(name).post_weights()]
    names = [name for weight in weights for name in (weight.name, *(weight.aliases or ())) if name in base]
    tied = tied_names(base) or ()
    return [name for name in names if name not in tied and sum(name in other for other in base.names) == 1]


def _architecture_of(
    bare: MergeConfiguration, options: MergeOptions, where: Path
) -> tuple[ModelArchitecture, PreTrainedConfig, PreTrainedConfig]:
    """mergekit's definition of the models of a recipe without adapters, the merged model's config and the base's."""
    forget_architectures()
    try:
        architecture = get_architecture_info(bare, options)
        model_config = model_out_config(bare, architecture)
        base_config = (bare.base_model or references(bare)[0]).config()
        architecture.all_weights(base_config)
    except (RuntimeError, ValueError) as error:
        raise PaftError(f"{where}: {re.sub(*WHOLE_CONFIG, one_line(error))}") from error
    except Exception as error:  # transformers and mergekit raise anything at a config that is not as they think
        said = f"mergekit cannot read the config.json of a model ({one_line(error, 200)}). Download it again."
        raise PaftError(f"{where}: {said}") from error
    return architecture, model_config, base_config


class Stream:
    """What a merge draws: the numbers that `mergekit-yaml --random-seed N` draws, apart from what else the process draws.

    mergekit seeds once and draws tensor by tensor, so what else draws before shifts everything. That is PEFT: to write an
    adapter out as a model, mergekit has it build LoRA layers, which PEFT initialises at random before it loads the trained
    factors over them. (Only with an empty cache, as the recipes' own command has it: with a cache from an earlier run the
    same seed draws other masks.) So here PEFT builds the same layers around a model without storage, and they are dropped.
    """

    def __init__(self, seed: int, loaders: dict[ModelReference, ModelLoader], device: str) -> None:
        self._gpu = torch.device(device) if torch.device(device).type == "cuda" else None
        before = self._get()
        torch.manual_seed(seed)
        for loader in loaders.values():
            if isinstance(loader, AdapterLoader):
                _draw_as_peft(loader)
        self._state = self._get()
        self._set(before)

    @contextmanager
    def flowing(self) -> Iterator[None]:
        """In this context torch's global generators go on with the stream."""
        before = self._get()
        self._set(self._state)
        try:
            yield
        finally:
            self._state = self._get()
            self._set(before)

    def _get(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        return torch.get_rng_state(), torch.cuda.get_rng_state(self._gpu) if self._gpu is not None else None

    def _set(self, state: tuple[torch.Tensor, torch.Tensor | None]) -> None:
        torch.set_rng_state(state[0])
        if self._gpu is not None and state[1] is not None:
            torch.cuda.set_rng_state(state[1], self._gpu)


def _draw_as_peft(loader: AdapterLoader) -> None:
    model = build_model(loader.store.folder)
    adapter = PeftConfig.from_pretrained(str(loader.delta.branch))
    # That this is the adapter's base was checked by content; PEFT would warn of another name.
    model.name_or_path = str(adapter.base_model_name_or_path or "")
    adapter.inference_mode = True
    get_peft_model(model, adapter)
