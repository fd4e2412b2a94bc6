"""What is wrong with a recipe's options and paths as such, whatever the folders hold."""

from __future__ import annotations

import difflib
import math
import unicodedata
from pathlib import Path

from paft_plugin.fusion.methods import METHODS, NOT_OFFERED, Extra, Method, extra_names, takers, takes_extra
from paft_plugin.fusion.request import (
    MATERIALIZED,
    RecipeRequest,
    density_settings,
    merged_folder,
    weight_settings,
    weights_given,
)
from paft_plugin.fusion.settings import Filter, conditions, parse_filters, unreachable

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
    close = difflib.get_close_matches(name, METHODS, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    return f"--method {name}: not one of {', '.join(METHODS)}.{hint}"


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
            close = difflib.get_close_matches(name, extra_names(), n=1)
            problems.append(f"{option}: no method takes it.{f' Did you mean {close[0]}?' if close else ''}")
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
