"""Parameters as a recipe writes them: a value, a gradient, or conditions; taken apart without losing their places."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mergekit.merge_methods.base import ParameterSpec

from paft_plugin.fusion.lint.findings import Keys

LIMITS: dict[str, tuple[float, float]] = {
    "density": (0.0, 1.0),
    "gamma": (0.0, 1.0),
    "epsilon": (0.0, 1.0),
    "select_topk": (0.0, 1.0),
    "t": (0.0, 1.0),
    "lambda": (float("-inf"), float("inf")),
    "weight": (float("-inf"), float("inf")),
    "max_iter": (0.0, float("inf")),
    "tol": (0.0, float("inf")),
    "eps": (0.0, float("inf")),
    "alpha": (0.0, float("inf")),
}
"""Parameter → the range in which its values mean something; infinity and NaN never do."""
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
    """Whether every tensor gets a value from a setting."""
    pairs = conditions(setting)
    return setting != [] and (pairs is None or any(name is None for name, _ in pairs))


def problem(parameter: ParameterSpec, value: Any) -> tuple[str, str] | None:
    """(code, sentence) of what is wrong with one value; None if nothing is."""
    try:
        valid = parameter.validate(value)
    except ValueError:
        kind = getattr(parameter.value_type, "__name__", "number")
        return "wrong-value", f"{parameter.name} is {value!r}, and mergekit wants a {_KINDS.get(kind, kind)}"
    if parameter.value_type in (float, int) and isinstance(value, bool):
        return "wrong-value", f"{parameter.name} is {str(value).lower()}, and mergekit wants a {_KINDS['float']}"
    if not isinstance(valid, (int, float)) or isinstance(valid, bool):
        return None
    lowest, highest = LIMITS.get(parameter.name, (float("-inf"), float("inf")))
    if not lowest <= valid <= highest or valid in (float("inf"), float("-inf")):
        return "out-of-range", f"{parameter.name} is {valid:g}, which is {_range(lowest, highest)}"
    if parameter.name in ABOVE_ZERO and valid == 0:
        return "out-of-range", f"{parameter.name} is 0, which throws everything away"
    return None


_KINDS = {"float": "number", "int": "whole number", "bool": "true or false"}


def _range(lowest: float, highest: float) -> str:
    if highest == float("inf"):
        return "no finite number" if lowest == float("-inf") else f"not a finite number from {lowest:g} on"
    return f"not from {lowest:g} to {highest:g}"
