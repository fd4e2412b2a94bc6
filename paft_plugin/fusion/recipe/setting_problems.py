"""What is wrong with the settings of a merge: every mistake at once, a sentence each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, islice, product

from paft_plugin.fusion.recipe.methods import METHODS, Method, extra_problems, no_such_method, takers
from paft_plugin.fusion.recipe.settings import (
    DENSITY,
    SETTINGS,
    TWO,
    WEIGHT,
    BranchName,
    RecipeSettings,
    Setting,
    numbers_of,
)

MOST_SUMS = 10_000
"""Combinations of weights by tensor whose sums are looked at."""


def number_problems(name: str, count: int) -> list[str]:
    """Why a method cannot take so many branches."""
    method = METHODS[name]
    if not count or method.least <= count <= (method.most or count):
        return []
    wants = f"takes {'exactly' if method.most else 'at least'} {method.least} branches"
    return [f"--method {name}: {wants}, not {count}. Any number: {takers(lambda other: other.most is None)}."]


def setting_problems(name: str, settings: RecipeSettings, branches: Sequence[BranchName] = TWO) -> list[str]:
    """Every mistake in the settings of a method, a sentence each, with what to do. They are named as the options."""
    method = METHODS.get(name)
    if method is None:
        return [no_such_method(name)]
    problems = {setting.name: _own_problems(setting, method, settings) for setting in dict.fromkeys(SETTINGS.values())}
    if not problems["density"]:
        problems["density"] = _window_problems(method, settings, branches)
    if method.weight is not None and branches:
        problems["weight"] += _sum_problems(method, settings, branches)
    if settings.trim == "global" and any(one.setting.startswith("density") for one in settings.filter):
        problems["trim"].append(
            "--trim global and --filter …:density: there is one threshold for a whole delta. Give one of the two."
        )
    if not problems["scale"]:
        problems["scale"] = _scale_beside_filters(method, settings, branches)
    more = [
        *settings.unknown_branches(branches),
        *extra_problems(method, settings.extras),
        *_unreachable_filters(settings, branches),
    ]
    return list(dict.fromkeys([*chain(*problems.values()), *more]))


def _own_problems(setting: Setting, method: Method, settings: RecipeSettings) -> list[str]:
    """What can be said of one setting alone: the method does not take it, or its value is out of range."""
    given = settings.given(setting)
    if setting.default(method) is not None:
        said = ((option, number) for option, value in given.items() for number in numbers_of(value))
        return [fault for option, number in said if (fault := setting.fault(option, number, method))]
    takes = takers(lambda other: setting.default(other) is not None)
    way_out = setting.way_out(method)
    return [
        f"{setting.label or option}: {method.name} {setting.untaken}. {way_out}, or take one of {takes}."
        for option in given
    ]


def _window_problems(method: Method, settings: RecipeSettings, branches: Sequence[BranchName]) -> list[str]:
    """DELLA draws with chances from density − epsilon to density + epsilon; Breadcrumbs takes outliers below density 1."""
    densities = settings.densities(method, branches)
    if densities is None:
        return []
    values = dict.fromkeys(value for density in densities for value in density.values)
    if settings.extras.get("gamma") and 1 in values:
        return [
            "--gamma and a density of 1: mergekit then takes no outliers away. Give a density below 1, such as 0.9."
        ]
    extra = method.extra_called("epsilon")
    if extra is None or not extra.per_branch:
        return []
    epsilon = float(settings.extras.get("epsilon", extra.default))
    return [
        f"density {density} and epsilon {epsilon}: density ± epsilon must lie within (0, 1), and mergekit stops otherwise. "
        f"Give an --epsilon below {min(density, 1 - density):.4g}."
        for density in values
        if not (density - epsilon > 0 and density + epsilon < 1)
    ]


def _sum_problems(method: Method, settings: RecipeSettings, branches: Sequence[BranchName]) -> list[str]:
    """Weights that together leave nothing, or that are divided by a sum of 0."""
    weights = settings.weights(method, branches)
    assert weights is not None
    if not any(weight.value and any(weight.depth) for weight in weights):
        return ["--weight-…: every weight is 0: the merged model would be the base. Give one branch a weight."]
    if not (settings.normalize or method.normalizes is None):
        return []
    together = islice(product(*(dict.fromkeys(weight.values) for weight in weights)), MOST_SUMS)
    return [
        f"weights {' and '.join(map(str, values))} add up to 0, and {method.name} divides by their sum. Change one."
        for values in together
        if sum(values) == 0
    ]


def _scale_beside_filters(method: Method, settings: RecipeSettings, branches: Sequence[BranchName]) -> list[str]:
    weights = settings.weights(method, branches) or []
    scaled = (
        "--scale"
        if settings.scale not in (None, 1)
        else "--depth"
        if any(weight.has_depth for weight in weights)
        else ""
    )
    if not scaled or method.scales == "lambda" or not any(weight.by_filter for weight in weights):
        return []
    return [
        f"{scaled} and --filter …:weight-…: {method.name} writes a {scaled[2:]} into the weights, which then cannot differ "
        "by tensor as well. Give one of the two, or take task_arithmetic."
    ]


def _unreachable_filters(settings: RecipeSettings, branches: Sequence[BranchName]) -> list[str]:
    """Filters behind another one that takes every tensor that they are for."""
    problems = []
    for setting in (DENSITY, WEIGHT):
        for branch in branches:
            names = [name for name, _ in settings.conditions(setting, branch)]
            problems += [
                f"--filter {name}: never reached, since {earlier} comes first and takes the same tensors. "
                f"Put {name} before it."
                for place, name in enumerate(names)
                for earlier in names[:place]
                if earlier in name
            ]
    return problems
