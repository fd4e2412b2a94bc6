"""Weights and densities of a branch: one value, and other values for tensors whose names hold a filter."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paft_plugin.errors import did_you_mean, raise_if_any
from paft_plugin.fusion.recipe.methods import (
    METHODS,
    NOT_OFFERED,
    Extra,
    Method,
    Value,
    extra_names,
    takers,
    takes_extra,
)

NAMES = ("density", "density-sft", "density-preference", "weight-sft", "weight-preference")
"""What a filter can set; `density` is that of both branches."""
SYNTAX = "--filter NAME:SETTING=VALUE, such as --filter mlp:density-sft=0.1"


@dataclass(frozen=True)
class Setting:
    """A parameter's value for every tensor."""

    value: float
    by_filter: tuple[tuple[str, float], ...] = ()
    """(filter, value) for tensors whose names hold the filter; the first that fits counts, as in mergekit."""

    @property
    def values(self) -> tuple[float, ...]:
        """Every value that some tensor may get."""
        return (*(value for _, value in self.by_filter), self.value)

    def content(self) -> Any:
        """As mergekit's YAML holds it: a number, or a list of conditions that ends with the value for the rest."""
        if not self.by_filter:
            return self.value
        return [{"filter": name, "value": value} for name, value in self.by_filter] + [{"value": self.value}]


@dataclass(frozen=True)
class Filter:
    """One `--filter`, taken apart."""

    name: str
    """Part of the names of the tensors that it is for."""
    setting: str
    """One of `NAMES`."""
    value: float


def parse_filters(texts: tuple[str, ...]) -> tuple[list[Filter], list[str]]:
    """Take `mlp:density-sft=0.1` apart.

    Returns:
        The filters that can be read, and a problem for each that can't.
    """
    filters, problems = [], []
    for text in texts:
        name, colon, rest = text.partition(":")
        setting, equals, value = (part.strip() for part in rest.partition("="))
        setting = setting.replace("_", "-")
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not (name.strip() and colon and equals) or number != number:
            problems.append(f"--filter {text}: not of the form NAME:SETTING=VALUE. Write it like {SYNTAX}.")
        elif setting not in NAMES:
            problems.append(
                f"--filter {text}: {setting} cannot be set by tensor. It must be one of {', '.join(NAMES)}."
            )
        else:
            filters.append(Filter(name.strip(), setting, number))
    return filters, problems


def conditions(filters: list[Filter], kind: str, branch: str) -> tuple[tuple[str, float], ...]:
    """The (filter, value) pairs of one parameter (`density` or `weight`) of one branch, in the order given."""
    return tuple((one.name, one.value) for one in filters if one.setting in (kind, f"{kind}-{branch}"))


def unreachable(pairs: tuple[tuple[str, float], ...]) -> list[tuple[str, str]]:
    """(filter, earlier filter) where the earlier one takes every tensor that the later one is for."""
    names = [name for name, _ in pairs]
    return [(name, earlier) for index, name in enumerate(names) for earlier in names[:index] if earlier in name]


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


SEEDS = 2**32  # numpy's range, which mergekit seeds too


def option_problems(request: RecipeRequest) -> list[str]:
    """Every mistake in a request that can be seen without a disk; one sentence each, with what to do."""
    method = METHODS.get(request.method)
    if method is None:
        return [_unknown_method(request.method)]
    filters, problems = parse_filters(request.filters)
    problems += _density_problems(request, method, filters)
    problems += _weight_problems(request, method, filters)
    problems += _extra_problems(request, method)
    problems += [
        f"--filter {name}: never reached, since {earlier} comes first and takes the same tensors. Put {name} before it."
        for pairs in {conditions(filters, kind, branch): 0 for kind in ("density", "weight") for branch in ("sft", "preference")}
        for name, earlier in unreachable(pairs)
    ]  # fmt: skip
    if request.normalize is not None and method.normalizes is None:
        takes = takers(lambda other: other.normalizes is not None)
        problems.append(
            f"--normalize/--no-normalize: {method.name} has no choice there. Leave it out, or take one of {takes}."
        )
    problems += _scale_problems(request, method)
    if not 0 <= request.seed < SEEDS:
        problems.append(f"--seed {request.seed}: must be from 0 to {SEEDS - 1}.")
    return list(dict.fromkeys(problems + _path_problems(request)))


def _unknown_method(name: str) -> str:
    if name in NOT_OFFERED:
        return f"--method {name}: {NOT_OFFERED[name]}. Take one of {', '.join(METHODS)}."
    return f"--method {name}: not one of {', '.join(METHODS)}. {did_you_mean(name, METHODS)}".rstrip()


def _density_problems(request: RecipeRequest, method: Method, filters: list[Filter]) -> list[str]:
    asked = {
        "--density": request.density,
        "--density-sft": request.density_sft,
        "--density-preference": request.density_preference,
        **{f"--filter {one.name}:{one.setting}": one.value for one in filters if one.setting.startswith("density")},
    }
    problems = []
    for option, density in asked.items():
        if density is None:
            continue
        if method.density is None:
            takes = takers(lambda other: other.density is not None)
            problems.append(f"{option}: {method.name} keeps every entry. Leave it out, or take one of {takes}.")
        elif not 0 < density <= 1:
            problems.append(f"{option} {density}: must be above 0 and at most 1: the share of entries to keep.")
        elif method.drops_at_random and density == 1:
            problems.append(
                f"{option} 1: {method.name} would drop nothing. Take ties or task_arithmetic, or give less than 1."
            )
    return problems or _window_problems(request)


def _window_problems(request: RecipeRequest) -> list[str]:
    """DELLA draws with chances from density − epsilon to density + epsilon; Breadcrumbs takes outliers below density 1."""
    densities = density_settings(request)
    if densities is None:
        return []
    if request.extras.get("gamma") and any(1 in setting.values for setting in densities):
        return [
            "--gamma and a density of 1: mergekit then takes no outliers away. Give a density below 1, such as 0.9."
        ]
    extra = _extra("epsilon", METHODS[request.method])
    if extra is None or not extra.per_branch:
        return []
    epsilon = float(request.extras.get("epsilon", extra.default))
    return [
        f"density {density} and epsilon {epsilon}: density ± epsilon must lie within (0, 1), and mergekit stops otherwise. "
        f"Give an --epsilon below {min(density, 1 - density):.4g}."
        for density in {value: 0 for setting in densities for value in setting.values}
        if not (density - epsilon > 0 and density + epsilon < 1)
    ]


def _weight_problems(request: RecipeRequest, method: Method, filters: list[Filter]) -> list[str]:
    settings = weight_settings(request)
    if settings is None:
        takes = takers(lambda other: other.weight is not None)
        way_out = "Give --t instead" if method.name == "slerp" else "Leave the weights out"
        return [f"--weight-…: {method.name} takes no weights. {way_out}, or take one of {takes}."] * weights_given(
            request
        )
    asked = {
        "--weight-sft": request.weight_sft,
        "--weight-preference": request.weight_preference,
        **{f"--filter {one.name}:{one.setting}": one.value for one in filters if one.setting.startswith("weight")},
    }
    problems = [
        f"{option} {value}: not a finite number. Give one like 0.5."
        for option, value in asked.items()
        if value is not None and not math.isfinite(value)
    ]
    sft, preference = (setting.value for setting in settings)
    if sft == 0 and preference == 0:
        return [
            *problems,
            "--weight-sft and --weight-preference are both 0: the merged model would be the base. Give one a weight.",
        ]
    divides = request.normalize or method.normalizes is None
    for first in settings[0].values:
        for second in settings[1].values:
            if divides and first + second == 0:
                problems.append(
                    f"weights {first} and {second} add up to 0, and {request.method} divides by their sum. Change one."
                )
    return problems


def _extra_problems(request: RecipeRequest, method: Method) -> list[str]:
    problems = []
    for name, value in request.extras.items():
        option = f"--{name.replace('_', '-')}"
        extra = _extra(name, method)
        if name not in extra_names():
            problems.append(f"{option}: no method takes it. {did_you_mean(name, extra_names())}".rstrip())
        elif extra is None:
            problems.append(
                f"{option}: {method.name} does not take it. Leave it out, or take one of {takers(takes_extra(name))}."
            )
        elif not extra.allows(value):
            problems.append(f"{option} {value}: {_range(extra)}.")
    return problems


def _extra(name: str, method: Method) -> Extra | None:
    return next((extra for extra in method.extras if extra.name == name), None)


def _range(extra: Extra) -> str:
    if math.isinf(extra.highest):
        return f"must be a finite number {'from' if extra.ends else 'above'} {extra.lowest:g} on"
    ends = "both included" if extra.ends else "neither included"
    return f"must be from {extra.lowest:g} to {extra.highest:g}, {ends}"


def _scale_problems(request: RecipeRequest, method: Method) -> list[str]:
    if request.scale is None:
        return []
    if method.scales is None:
        takes = takers(lambda other: other.scales is not None)
        return [f"--scale: {method.name} has no factor on the merged delta. Leave it out, or take one of {takes}."]
    if not (math.isfinite(request.scale) and request.scale > 0):
        return [f"--scale {request.scale}: must be a finite number above 0. 1 leaves the merged delta as it is."]
    settings = weight_settings(request)
    if request.scale != 1 and method.scales != "lambda" and settings and any(setting.by_filter for setting in settings):
        return [
            f"--scale and --filter …:weight-…: {method.name} writes a scale into the weights, which then cannot differ "
            "by tensor as well. Give one of the two, or take task_arithmetic."
        ]
    return []


def _path_problems(request: RecipeRequest) -> list[str]:
    problems = []
    merged = merged_folder(request)
    branches = {"--base": request.base, "--sft": request.sft, "--preference": request.preference}
    for option, path in {**branches, "--output": request.output}.items():
        # Such characters would break the header's command line, or YAML itself.
        if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in str(path)):
            problems.append(
                f"{option} {str(path)!r}: a line break or control character in the path. Rename the folder."
            )
    options = list(branches)
    for index, option in enumerate(options):
        for other in options[index + 1 :]:
            if branches[option] == branches[other]:
                problems.append(
                    f"{option} and {other} are the same folder, {branches[option]}. Give two different ones."
                )
    if request.materialize and merged == request.output.parent / MATERIALIZED:
        problems.append(f"--output {request.output}: the adapters' whole models go to {merged}. Give another name.")
    return problems + [_overwrites(request, merged, option) for option, path in branches.items() if merged == path]


def _overwrites(request: RecipeRequest, merged: Path, option: str) -> str:
    return f"--output {request.output}: the merged model would be written to {merged}, which is {option}. Give another name."


def settle(
    request: RecipeRequest,
    *,
    sft_is_adapter: bool,
    preference_is_adapter: bool,
    dtype: str,
    cache: str,
    tokenizer_named: bool = False,
    idle: tuple[bool, bool] = (False, False),
) -> Recipe:
    """Fill in every default of a request; touches no disk.

    Args:
        request: With absolute paths.
        sft_is_adapter: Whether the SFT branch is an adapter rather than a model.
        preference_is_adapter: The same of the preference branch.
        dtype: The base's own dtype, in torch's word.
        cache: Fingerprint of the base's and the adapters' contents.
        tokenizer_named: Whether the recipe must name the base's tokenizer.
        idle: For each branch, whether the method's default density would trim nothing of it.

    Raises:
        PaftError: Options that are out of range, or that the method does not take (all of them in one error).
    """
    raise_if_any(option_problems(request))
    method = METHODS[request.method]
    given = weights_given(request)
    normalize = request.normalize
    if normalize is None and method.normalizes is not None:
        # Published TIES has no weights and takes the mean over the branches that agree; written weights act as written.
        normalize = method.normalizes and not given
    idle = (idle[0] and density_open(request, "sft"), idle[1] and density_open(request, "preference"))
    reads_adapter = (sft_is_adapter or preference_is_adapter) and not request.materialize
    return Recipe(
        method=request.method,
        base=request.base,
        sft=Branch(request.sft, sft_is_adapter),
        preference=Branch(request.preference, preference_is_adapter),
        weights=weight_settings(request),
        weights_given=given,
        densities=density_settings(request, idle),
        idle=idle,
        normalize=normalize,
        scale=1.0 if request.scale is None else request.scale,
        extras={extra.name: request.extras.get(extra.name, extra.default) for extra in method.extras},
        out_dtype=dtype,
        seed=request.seed,
        file=request.output,
        merged=merged_folder(request),
        tokenizer_named=tokenizer_named,
        lora_cache=request.output.parent / f".lora-cache-{cache}" if reads_adapter else None,
    )


def density_open(request: RecipeRequest, branch: str) -> bool:
    """Whether nothing was said about a branch's density."""
    own = request.density_sft if branch == "sft" else request.density_preference
    return (
        own is None and request.density is None and not conditions(parse_filters(request.filters)[0], "density", branch)
    )
