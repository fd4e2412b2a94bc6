"""Checks of parameters: whether the method takes them, in that place, and with such a value."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import inf
from typing import Any

import yaml
from mergekit.merge_methods import registered_methods
from mergekit.merge_methods.base import ParameterScope, ParameterSpec

from paft_plugin.errors import closest, some
from paft_plugin.fusion.lint.findings import Finding, Rule
from paft_plugin.fusion.lint.recipe import Group, MergeInput, Scope, SoundRecipe, recipe_check
from paft_plugin.schema import Keys, dotted

LIMITS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("density", "gamma", "epsilon", "select_topk", "t"), (0.0, 1.0)),
    **dict.fromkeys(("max_iter", "tol", "eps", "alpha"), (0.0, inf)),
}
"""Parameter → the range in which its values mean something, if not all numbers do; infinity and NaN never do."""
ABOVE_ZERO = ("density", "select_topk")
"""Parameters that throw everything away at 0."""


def scalars(setting: Any, keys: Keys) -> Iterator[tuple[Keys, Any]]:
    """Every single value in a parameter's setting, with its place."""
    if isinstance(setting, dict):
        yield from scalars(setting.get("value"), (*keys, "value"))
    elif isinstance(setting, list):
        for index, item in enumerate(setting):
            yield from scalars(item, (*keys, index))
    else:
        yield keys, setting


def conditions(setting: Any) -> list[tuple[str | None, Any]] | None:
    """(filter, value) of each condition, the filter None where it takes every tensor; None if there are no conditions."""
    if isinstance(setting, dict):
        setting = [setting]
    if not isinstance(setting, list) or not any(isinstance(item, dict) for item in setting):
        return None
    pairs = [(item.get("filter"), item.get("value")) for item in setting if isinstance(item, dict)]
    return [(None if name in (None, "*") else str(name), value) for name, value in pairs]


def default_covers(setting: Any) -> bool:
    """Whether a parameter's setting gives every tensor a value."""
    pairs = conditions(setting)
    return setting != [] and (pairs is None or any(name is None for name, _ in pairs))


def problem(parameter: ParameterSpec, value: Any) -> tuple[Rule, str] | None:
    """(rule, sentence) of what is wrong with one value; None if nothing is."""
    try:
        valid = parameter.validate(value)
    except ValueError:
        kind = getattr(parameter.value_type, "__name__", "number")
        return WRONG_VALUE, f"{parameter.name} is {value!r}, and mergekit wants a {_KINDS.get(kind, kind)}"
    if parameter.value_type in (float, int) and isinstance(value, bool):
        return WRONG_VALUE, f"{parameter.name} is {str(value).lower()}, and mergekit wants a {_KINDS['float']}"
    if not isinstance(valid, (int, float)) or isinstance(valid, bool):
        return None
    lowest, highest = LIMITS.get(parameter.name, (-inf, inf))
    if not lowest <= valid <= highest or valid in (inf, -inf):
        return OUT_OF_RANGE, f"{parameter.name} is {valid:g}, which is {_outside_of(lowest, highest)}"
    if parameter.name in ABOVE_ZERO and valid == 0:
        return OUT_OF_RANGE, f"{parameter.name} is 0, which throws everything away"
    return None


_KINDS = {"float": "number", "int": "whole number", "bool": "true or false"}


def _outside_of(lowest: float, highest: float) -> str:
    if highest == inf:
        return "no finite number" if lowest == -inf else f"not a finite number from {lowest:g} on"
    return f"not from {lowest:g} to {highest:g}"


UNKNOWN_PARAMETER = Rule.error(
    201, "unknown-parameter", "The method does not take this parameter, so mergekit ignores it."
)
WRONG_SCOPE = Rule.error(
    202, "wrong-scope", "A parameter of the whole recipe stands under a model, where mergekit never looks for it."
)


@recipe_check
def known(recipe: SoundRecipe) -> Iterator[Finding]:
    """Parameters that the method does not take, or not where they stand."""
    own = {parameter.name: parameter for parameter in recipe.spec.parameters}
    for (keys, scope), under_model in recipe.scopes:
        for name in scope:
            place = (*keys, name)
            if name not in own:
                yield _unknown_parameter(recipe, place, list(own))
            elif under_model and own[name].scope == ParameterScope.SHARED:
                message = f"`{name}` is one for the whole recipe: mergekit never looks for it under a model."
                fix = f"Move it to the recipe's own `parameters:`, as `{dotted(('parameters', name))}`."
                yield recipe.finding(WRONG_SCOPE, place, message, fix)


WRONG_VALUE = Rule.error(
    204, "wrong-value", "A parameter's value is of the wrong kind, such as a word where a number belongs."
)
OUT_OF_RANGE = Rule.error(205, "out-of-range", "A parameter's value is outside of what it can mean.")


@recipe_check
def valued(recipe: SoundRecipe) -> Iterator[Finding]:
    """Values of the wrong kind or out of range."""
    for parameter, keys, setting in settings(recipe):
        for place, value in scalars(setting, keys):
            if found := problem(parameter, value):
                example = yaml.safe_dump(0.5 if parameter.required else parameter.default).split()[0]
                fix = f"Write something like `{parameter.name}: {example}`."
                yield recipe.finding(found[0], place, f"{found[1]}.", fix)


MISSING_PARAMETER = Rule.error(
    203, "missing-parameter", "A parameter without a default is missing for a model, so mergekit stops."
)


@recipe_check
def required(recipe: SoundRecipe) -> Iterator[Finding]:
    """Parameters without a default that some model lacks."""
    for group, parameter in product(recipe.groups, recipe.spec.parameters):
        if not parameter.required:
            continue
        entries = group.entries if parameter.scope == ParameterScope.INPUT else group.branches
        places: list[tuple[Keys, tuple[Scope, ...]]]
        places = [(entry.keys, (entry.parameters, *group.shared)) for entry in entries]
        if parameter.scope == ParameterScope.SHARED:
            places = [((), group.shared)]
        for keys, scopes in places:
            if not _is_given(parameter, scopes) and not _misspelt(parameter, scopes, recipe):
                yield _missing_parameter(recipe, parameter, keys, scopes)


NO_DEFAULT = Rule.warning(
    210, "no-default", "Conditions without a last one for the rest: other tensors get mergekit's own default."
)
UNREACHABLE = Rule.warning(
    211, "unreachable", "A condition that stands after one which takes the same tensors is never reached."
)
FILTER_WITHOUT_TENSORS = Rule.warning(
    212, "filter-without-tensors", "No tensor of the base model has the filter's text in its name."
)


@recipe_check
def conditional(recipe: SoundRecipe) -> Iterator[Finding]:
    """Conditions that are never reached, that leave tensors without a value, or that fit no tensor."""
    for parameter, keys, setting in settings(recipe):
        pairs = conditions(setting)
        if pairs is None:
            continue
        names = [name for name, _ in pairs]
        for index, name in enumerate(names):
            before = next((other for other in names[:index] if other is None or (name and other in name)), "")
            if before != "":
                first = "the one without a filter" if before is None else f"the filter {before}"
                message = f"The condition for {name or 'every tensor'} is never reached: {first} stands before it."
                fix = "Put the narrower condition first, and the one for all others last."
                yield recipe.finding(UNREACHABLE, (*keys, index), message, fix)
            if name and recipe.base is not None and not any(name in tensor for tensor in recipe.base.names):
                parts = dict.fromkeys(part for tensor in recipe.base.names for part in tensor.split("."))
                message = f"No tensor of {recipe.base.folder} has {name!r} in its name."
                fix = f"The parts of its names are {some([part for part in parts if not part.isdigit()], most=15)}."
                yield recipe.finding(FILTER_WITHOUT_TENSORS, (*keys, index), message, fix)
        wider = recipe.document.content.get("parameters")
        is_wider = keys[0] != "parameters" and isinstance(wider, dict) and parameter.name in wider
        if not default_covers(setting) and not parameter.required and not is_wider:
            message = f"Tensors that no filter takes get mergekit's default for {parameter.name}, {parameter.default}."
            fix = f"End the list with a condition without a filter: `- value: {parameter.default}`."
            yield recipe.finding(NO_DEFAULT, keys, message, fix)


GRADIENT = Rule.warning(
    209, "gradient", "A list of numbers is a gradient over the layers, not one value for each model."
)


@recipe_check
def gradients(recipe: SoundRecipe) -> Iterator[Finding]:
    """A list of numbers where a value for each model was probably meant."""
    per_model = {parameter.name for parameter in recipe.spec.input_parameters}
    for group in recipe.groups:
        for keys, scope in group.shared:
            for name, setting in scope.items():
                is_list = isinstance(setting, list) and not any(isinstance(item, dict) for item in setting)
                if name in per_model and is_list and len(setting) in (len(group.entries), len(group.branches)):
                    message = f"{setting} runs from the first layer to the last, the same for each of the models."
                    fix = f"For one {name} each, write it under each model's own `parameters:`."
                    yield recipe.finding(GRADIENT, (*keys, name), message, fix)


PARAMETER_ON_BASE = Rule.warning(
    206, "parameter-on-base", "A weight or density of the base model itself: it has no delta, so nothing reads it."
)


@recipe_check
def on_base(recipe: SoundRecipe) -> Iterator[Finding]:
    """Weights and densities that stand under the base model."""
    per_delta = {one.name for one in recipe.spec.parameters if one.scope == ParameterScope.NON_BASE}
    for group in recipe.groups:
        for keys, scope in (entry.parameters for entry in group.entries if entry.reference == group.base):
            for name in per_delta & scope.keys():
                message = f"This model is base_model: it has no delta, so nothing reads its {name}."
                fix = "Delete it here, or lower the weights of the others."
                yield recipe.finding(PARAMETER_ON_BASE, (*keys, name), message, fix)


def settings(recipe: SoundRecipe) -> Iterator[tuple[ParameterSpec, Keys, Any]]:
    """Every parameter that the method takes, where it is set, with what it is set to."""
    own = {parameter.name: parameter for parameter in recipe.spec.parameters}
    for (keys, scope), _ in recipe.scopes:
        for name, setting in scope.items():
            if name in own:
                yield own[name], (*keys, name), setting


def values_of(recipe: SoundRecipe, group: Group, entry: MergeInput | None, name: str) -> list[Any]:
    """Every value that a parameter may take for a model (None: for all), or mergekit's default; [] where unreadable."""
    parameter = next(one for one in recipe.spec.parameters if one.name == name)
    scopes = ((entry.parameters,) if entry is not None else ()) + group.shared
    found: list[Any] = []
    for keys, scope in scopes:
        if name in scope:
            found += [value for _, value in scalars(scope[name], keys)]
            if default_covers(scope[name]):
                break
    else:
        found += [] if parameter.required else [parameter.default]
    return [] if any(problem(parameter, value) for value in found) else [parameter.validate(value) for value in found]


def _is_given(parameter: ParameterSpec, scopes: tuple[Scope, ...]) -> bool:
    return any(parameter.name in scope and default_covers(scope[parameter.name]) for _, scope in scopes)


def _misspelt(parameter: ParameterSpec, scopes: tuple[Scope, ...], recipe: SoundRecipe) -> bool:
    own = {one.name for one in recipe.spec.parameters}
    return any(closest(str(key), [parameter.name]) for _, scope in scopes for key in scope if key not in own)


def _missing_parameter(recipe: SoundRecipe, parameter: ParameterSpec, keys: Keys, scopes: tuple[Scope, ...]) -> Finding:
    partial = next(((*at, parameter.name) for at, scope in scopes if parameter.name in scope), None)
    if partial is not None:
        message = f"Tensors that no filter takes have no {parameter.name}, and mergekit stops there."
        fix = "End the list with a condition without a filter: `- value: …`."
        return recipe.finding(MISSING_PARAMETER, partial, message, fix)
    where = "under this model" if keys else "in the recipe's own `parameters:`"
    fix = f"Add it {where}, such as `{parameter.name}: 0.5`."
    return recipe.finding(MISSING_PARAMETER, keys, f"{recipe.spec.name} needs `{parameter.name}`.", fix)


def _unknown_parameter(recipe: SoundRecipe, keys: Keys, own: list[str]) -> Finding:
    name, method = str(keys[-1]), recipe.spec.name
    others = [other.spec.name for other in registered_methods() if name in {one.name for one in other.spec.parameters}]
    if others:
        message = f"{method} does not take `{name}`, so mergekit ignores it."
        fix = f"Delete it, or take a method that does: {', '.join(others)}."
    else:
        match = closest(name, own)
        message = f"No method takes `{name}`, so mergekit ignores it."
        fix = f"Did you mean `{match}`?" if match else f"Delete it; {method} takes {', '.join(own) or 'no parameters'}."
    return recipe.finding(UNKNOWN_PARAMETER, keys, message, fix)
