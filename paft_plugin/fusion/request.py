"""What a user asks of a recipe, and the recipe that it comes to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from paft_plugin.fusion.methods import METHODS, Value
from paft_plugin.fusion.settings import Setting, conditions, parse_filters

MATERIALIZED = "materialized"
"""Folder beside a recipe for its adapters as whole models."""


@dataclass(frozen=True)
class RecipeRequest:
    """A recipe as asked for; None leaves a choice to the method's default.

    An option that the method does not take must stay None.
    """

    base: Path
    """Folder of the base model θ_pre."""
    sft: Path
    """Folder of the SFT branch: an adapter or a whole model."""
    preference: Path
    """Folder of the preference branch: an adapter or a whole model."""
    method: str
    """A key of `METHODS`."""
    output: Path
    """The recipe's file."""
    density: float | None = None
    """Share of each delta's entries to keep, in (0, 1]; where entries are dropped by chance, in (0, 1)."""
    density_sft: float | None = None
    """`density` of the SFT branch alone."""
    density_preference: float | None = None
    """`density` of the preference branch alone."""
    weight_sft: float | None = None
    weight_preference: float | None = None
    filters: tuple[str, ...] = ()
    """Other densities and weights for tensors whose names hold a word, such as `mlp:density-sft=0.1`."""
    scale: float | None = None
    """Factor on the merged delta (TIES' λ), > 0; 1 if None."""
    normalize: bool | None = None
    """Whether the summed deltas are divided by the weights of those that take part."""
    extras: Mapping[str, Value] = field(default_factory=dict)
    """Parameters that few methods take (`Method.extras`), by mergekit's names."""
    seed: int = 0
    merged: Path | None = None
    """Where the merged model goes; the recipe's path without its suffix if None."""
    materialize: bool = False
    """Whether adapters are written as whole models beside the recipe, so that mergekit needs no flags for them."""


@dataclass(frozen=True)
class Branch:
    """A branch in a recipe."""

    path: Path
    """What the user gave."""
    is_adapter: bool
    whole: Path | None = None
    """The adapter on its base as a whole model, where it was asked for; mergekit then reads this."""


@dataclass(frozen=True)
class Recipe:
    """A recipe in full: every choice made, every path absolute. Pure data, so it renders without touching a disk."""

    method: str
    base: Path
    sft: Branch
    preference: Branch
    weights: tuple[Setting, Setting] | None
    """Of the SFT and the preference branch; None for a method that does not take them."""
    weights_given: bool
    """Whether the user chose a weight; decides TIES' default of `normalize`, and the comment on it."""
    densities: tuple[Setting, Setting] | None
    """Of the SFT and the preference branch; None for a method that keeps every entry."""
    idle: tuple[bool, bool]
    """For each branch, whether its density stands at 1 because the default would trim nothing of a delta so sparse."""
    normalize: bool | None
    """None for a method that does not take it."""
    scale: float
    extras: Mapping[str, Value]
    """A value for each of the method's extras."""
    out_dtype: str
    """torch's word for the base's dtype (`bfloat16`, `float16`, `float32`, `float64`)."""
    seed: int
    file: Path
    merged: Path
    tokenizer_named: bool
    """Whether mergekit must be told to take the base's tokenizer."""
    lora_cache: Path | None
    """Where mergekit writes each adapter as a whole model; None where it reads no adapter."""
    warnings: tuple[str, ...] = ()
    """What is to be known about the branches: differing tokenizers, a penalty that nothing proves."""

    @property
    def branches(self) -> tuple[Branch, Branch]:
        """SFT first, as in every table of this project."""
        return self.sft, self.preference


def merged_folder(request: RecipeRequest) -> Path:
    """Where the merged model goes."""
    if request.merged is not None:
        return request.merged
    path = request.output
    return path.with_suffix("") if path.suffix else path.with_name(f"{path.name}-merged")


def weights_given(request: RecipeRequest) -> bool:
    """Whether a weight was chosen, for all tensors or for some."""
    asked = request.weight_sft is not None or request.weight_preference is not None
    return asked or any(one.setting.startswith("weight") for one in parse_filters(request.filters)[0])


def weight_settings(request: RecipeRequest) -> tuple[Setting, Setting] | None:
    """The weights of SFT and preference branch; None for a method that takes none."""
    default = METHODS[request.method].weight
    if default is None:
        return None
    filters = parse_filters(request.filters)[0]
    sft = default if request.weight_sft is None else request.weight_sft
    preference = default if request.weight_preference is None else request.weight_preference
    return (
        Setting(sft, conditions(filters, "weight", "sft")),
        Setting(preference, conditions(filters, "weight", "preference")),
    )


def density_settings(
    request: RecipeRequest, idle: tuple[bool, bool] = (False, False)
) -> tuple[Setting, Setting] | None:
    """The densities of SFT and preference branch; None for a method that keeps every entry."""
    default = METHODS[request.method].density
    if default is None:
        return None
    filters = parse_filters(request.filters)[0]

    def of(branch: str, own: float | None, trims_nothing: bool) -> Setting:
        chosen = own if own is not None else request.density
        otherwise = 1.0 if trims_nothing else default
        return Setting(otherwise if chosen is None else chosen, conditions(filters, "density", branch))

    return of("sft", request.density_sft, idle[0]), of("preference", request.density_preference, idle[1])
