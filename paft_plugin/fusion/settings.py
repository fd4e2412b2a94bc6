"""Weights and densities of a branch: one value, and other values for tensors whose names hold a filter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
