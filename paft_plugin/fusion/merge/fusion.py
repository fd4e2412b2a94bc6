"""A recipe made ready to merge: its models open, what cannot be done refused, its tensors one by one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from mergekit.architecture import ModelArchitecture, get_architecture_info
from mergekit.architecture.auto import infer_architecture_info
from mergekit.architecture.json_definitions import JsonModuleArchitecture
from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.merge import _model_out_config
from mergekit.merge_methods import get as method_called
from mergekit.options import MergeOptions
from mergekit.plan import MergePlanner
from mergekit.tokenizer import TokenizerInfo
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from paft_plugin.errors import PaftError, one_line
from paft_plugin.fusion.merge.configuration import read_recipe, references, without_adapters
from paft_plugin.fusion.merge.loaders import ModelLoader, loaders_in_place, open_loaders
from paft_plugin.fusion.merge.plan import Plan
from paft_plugin.fusion.merge.seeding import Stream
from paft_plugin.fusion.merge.selection import fast_selection
from paft_plugin.fusion.merge.untouched import draws
from paft_plugin.machine import usable_device

BUFFERS = (".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")


def without_old_buffers(architecture: ModelArchitecture) -> ModelArchitecture:
    """The architecture with such tensors merged where they are, and not missed where they aren't."""
    modules = {}
    for name, module in architecture.modules.items():
        inside = module.architecture
        if isinstance(inside, JsonModuleArchitecture):
            weights = [
                weight.model_copy(update={"optional": True}) if weight.name.endswith(BUFFERS) else weight
                for weight in inside.definition.layer_templates.weights
            ]
            if weights != inside.definition.layer_templates.weights:
                templates = inside.definition.layer_templates.model_copy(update={"weights": weights})
                definition = inside.definition.model_copy(update={"layer_templates": templates})
                module = module.model_copy(
                    update={"architecture": inside.model_copy(update={"definition": definition})}
                )
        modules[name] = module
    return architecture.model_copy(update={"modules": modules})


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
    model_config: PreTrainedConfig
    """Of the merged model."""
    tokenizer: PreTrainedTokenizerBase | None = field(default=None, init=False)
    """The one that `tokenizer:` in the recipe asks for, once all tensors came."""

    def tensors(self, quiet: bool = True) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, fused tensor in the recipe's `out_dtype`, on the CPU) in mergekit's order, each computed when asked for.

        Every call begins anew, from the same seed, and neither disturbs nor is disturbed by what else torch draws. Until its
        end (or `close()`), mergekit's global cache of open models holds this recipe's.

        Raises:
            PaftError: A parameter that the method does not take, or tensors that don't fit one another.
        """
        with self.planned() as plan:
            yield from self.run(plan, quiet)

    @contextmanager
    def planned(self) -> Iterator[Plan]:
        """For the time of the context, a plan that `run` can carry out once."""
        with loaders_in_place(self.loaders), fast_selection(), self._mistakes():
            LoaderCache().setup(self.options)
            # Planning rewrites the configuration that it is given.
            config = self.config.model_copy(deep=True)
            yield Plan(MergePlanner(config, self.architecture, self.options, self.model_config), self.loaders)

    def run(self, plan: Plan, quiet: bool = True) -> Iterator[tuple[str, Tensor]]:
        """As `tensors`, of a plan that is made already."""
        random = draws(method_called(self.config.merge_method))
        stream = Stream(self.seed, self.loaders, self.options.device) if random else None
        items = plan.run(quiet)
        while True:
            with stream.flowing() if stream else nullcontext():
                item = next(items, None)
            if item is None:
                return
            if isinstance(item, TokenizerInfo):
                self.tokenizer = item.tokenizer
            else:
                yield item

    @contextmanager
    def _mistakes(self) -> Iterator[None]:
        """mergekit's own checks are about what a recipe says."""
        try:
            yield
        except PaftError:
            raise
        except (RuntimeError, ValueError) as error:
            raise PaftError(f"{self.recipe}: {one_line(error)}") from error


def open_fusion(recipe: Path, seed: int = 0, device: str = "auto") -> Fusion:
    """Read a recipe (any mergekit YAML of merge methods) and open what it merges.

    Args:
        recipe: The file. Relative paths in it are meant from the current folder, as with `mergekit-yaml`.
        seed: Of the methods that draw at random: with the same one they draw as ``mergekit-yaml --random-seed``.
        device: Where tensors are merged: `cpu`, `cuda` …, or `auto` for a GPU where there is one.

    Raises:
        PaftError: Everything that is wrong with the recipe or its models.
    """
    config, text = read_recipe(recipe)
    try:
        method_called(config.merge_method)
    except RuntimeError:
        raise PaftError(f"{recipe}: merge_method {config.merge_method}: mergekit has no such method.") from None
    options = MergeOptions(device=device if device == "auto" else usable_device(device, "--device"))
    loaders = open_loaders(references(config))
    bare = without_adapters(config)
    # mergekit remembers what it found at a path, whatever is there now.
    infer_architecture_info.cache_clear()
    try:
        architecture = without_old_buffers(get_architecture_info(bare, options))
        model_config = _model_out_config(bare, architecture)
    except (RuntimeError, ValueError) as error:
        raise PaftError(f"{recipe}: {one_line(error)}") from error
    return Fusion(recipe, text, config, loaders, options, seed, architecture, model_config)
