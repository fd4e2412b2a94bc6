"""The merge methods that a recipe can name: what each takes, and its defaults for the deltas of PAFT.

The defaults are this project's own choices (the PAFT paper states neither densities nor merge weights), except where a
source is named. `tests/fusion/recipe/test_defaults.py` measures every reason that is a claim about sparse or small deltas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from paft_plugin.errors import did_you_mean

Value = bool | int | float


@dataclass(frozen=True)
class Extra:
    """A parameter that few methods take, with its default for one of them. Its option is its name with dashes."""

    name: str
    """As mergekit calls it."""
    default: Value
    reason: str
    per_branch: bool = False
    """Whether mergekit reads it under each model, rather than once for the recipe."""
    lowest: float = 0.0
    highest: float = math.inf
    ends: bool = True
    """Whether the lowest and the highest value are allowed themselves."""

    def allows(self, value: Value) -> bool:
        """Whether a value is in range; NaN never is."""
        if isinstance(self.default, bool):
            return isinstance(value, bool)
        inside = self.lowest < value < self.highest
        return inside or (self.ends and value in (self.lowest, self.highest) and value != math.inf)

    def range_in_words(self) -> str:
        """What `allows` lets through."""
        if math.isinf(self.highest):
            return f"must be a finite number {'from' if self.ends else 'above'} {self.lowest:g} on"
        return f"must be from {self.lowest:g} to {self.highest:g}, {'both' if self.ends else 'neither'} included"


@dataclass(frozen=True)
class Method:
    """One of mergekit's merge methods."""

    name: str
    """As mergekit calls it."""
    title: str
    """As its paper calls it, with the paper."""
    weight: float | None = None
    """Default weight of each branch; None where mergekit takes no weights."""
    layout: Literal["deltas", "models", "pair"] = "deltas"
    """What is mergekit's `base_model`. `deltas`: the base; `models`: nothing; `pair`: the first branch."""
    layout_reason: str = ""
    least: int = 1
    """How many branches it takes at least."""
    most: int | None = None
    """How many it takes at most; None: any number."""
    density: float | None = None
    """Default share of a delta's entries that is kept; None where nothing is trimmed or dropped."""
    density_reason: str = ""
    selects: Literal["largest", "random", "ranked"] | None = None
    """Which entries are kept: the largest, any by chance (the seed matters), or by chance the more likely the larger."""
    normalizes: bool | None = None
    """Default of `normalize` as long as no weight is given; None where mergekit takes no `normalize`."""
    scales: Literal["lambda", "weights", "base"] | None = None
    """How a factor on the merged delta is written: mergekit's `lambda`, smaller weights, or the base as a third model."""
    extras: tuple[Extra, ...] = ()
    searched: tuple[str, ...] | None = None
    """The settings that `axolotl paft search` varies, perhaps none; None: the method is tried only if it is asked for."""

    def extra_called(self, name: str) -> Extra | None:
        """One of its extras."""
        return next((extra for extra in self.extras if extra.name == name), None)

    @property
    def on_deltas(self) -> bool:
        """Whether it merges deltas onto the base model, rather than whole models with each other."""
        return self.layout == "deltas"

    @property
    def drops_at_random(self) -> bool:
        """Whether the seed matters."""
        return self.selects in ("random", "ranked")


MEANINGS = {
    "rescale": "scale what is left of a tensor up to its L1 norm before",
    "epsilon": "della: how far chances go around the density; ram: size up to which an entry counts as unchanged",
    "gamma": "share of all entries that goes as outliers, largest first",
    "t": "from the SFT branch (0) to the preference branch (1)",
    "nuslerp_flatten": "one angle for a whole tensor rather than for each row",
    "max_iter": "steps at most towards the mean",
    "tol": "angle below which it has arrived",
    "select_topk": "share of the differing entries that is kept",
    "filter_wise": "one angle for each row rather than for a whole tensor",
    "r": "how much a branch's own entries grow with the overlap",
    "alpha": "where that growth ends",
}
"""Extra → what it does, in a few words."""

_RESCALE = Extra("rescale", True, "what is left of each tensor is scaled up to its L1 norm before (mergekit's way)")
_EPSILON = Extra(
    "epsilon",
    0.1,
    "density ± epsilon are the chances of the smallest and the largest entry of a row to stay, so both lie within (0, 1)",
    per_branch=True,
    highest=0.5,
)
_GAMMA = Extra(
    "gamma",
    0.0,
    "the share of *all* entries that goes as outliers, largest first: mergekit's 0.01 would take most of a delta with "
    "1 % non-zeros",
    per_branch=True,
    highest=1.0,
)
_RAM_EPSILON = Extra("epsilon", 1e-5, "smaller entries count as unchanged: this project's threshold of sparsity")

# Each of these ways to thin out a delta has a form with TIES' sign election and one with a plain sum.
_TRIM: dict[str, Any] = {
    "density": 0.2,
    "density_reason": "the TIES paper's top 20 %, of all entries of a tensor: a sparser delta loses only its near-zero ones",
    "selects": "largest",
}
_DARE: dict[str, Any] = {
    "density": 0.5,
    "density_reason": "half is dropped by chance; the paper's 0.1 suits dense deltas: of a sparse one it leaves little, "
    "at ten times its size",
    "selects": "random",
    "extras": (_RESCALE,),
    "searched": ("density", "weight"),
}
_DELLA: dict[str, Any] = {
    "density": 0.5,
    "density_reason": "half is dropped by chance, as for DARE; larger entries of a row less often",
    "selects": "ranked",
    "extras": (_EPSILON, _RESCALE),
}


def _task_arithmetic(name: str, title: str, normalizes: bool = False, **more: Any) -> Method:
    """A method of mergekit's family of weighted sums of deltas, which all take `weight`, `normalize` and `lambda`."""
    return Method(name, title, weight=1.0, normalizes=normalizes, scales="lambda", **more)


_ALL = (
    _task_arithmetic(
        "ties", "TIES (arXiv 2306.01708)", normalizes=True, **_TRIM, searched=("density", "weight", "scale")
    ),
    _task_arithmetic("dare_ties", "DARE with TIES' sign election (arXiv 2311.03099)", **_DARE),
    _task_arithmetic("dare_linear", "DARE with a plain sum (arXiv 2311.03099)", **_DARE),
    _task_arithmetic("della", "DELLA with TIES' sign election (arXiv 2406.11617)", normalizes=True, **_DELLA),
    _task_arithmetic("della_linear", "DELLA with a plain sum (arXiv 2406.11617)", **_DELLA),
    _task_arithmetic("breadcrumbs", "Model Breadcrumbs (arXiv 2312.06795)", **_TRIM, extras=(_GAMMA,)),
    _task_arithmetic(
        "breadcrumbs_ties", "Model Breadcrumbs with TIES' sign election (arXiv 2312.06795)", **_TRIM, extras=(_GAMMA,)
    ),
    _task_arithmetic("task_arithmetic", "Task Arithmetic (arXiv 2212.04089)", searched=("weight",)),
    Method("linear", "Linear (arXiv 2203.05482)", weight=0.5, layout="models", scales="base", searched=()),
    Method(
        "slerp",
        "SLERP of the two whole models",
        layout="pair",
        least=2,
        most=2,
        layout_reason="SLERP goes from one model to another, and wants the first here; it never sees the base model",
        extras=(
            Extra(
                "t",
                0.5,
                "from the SFT branch (0) to the preference branch (1). Models this close lie on a straight line: it is "
                "their mean, half of each delta. nuslerp turns the deltas themselves",
                highest=1.0,
            ),
        ),
    ),
    Method(
        "nuslerp",
        "NuSLERP of the two deltas",
        least=2,
        most=2,
        weight=1.0,
        extras=(Extra("nuslerp_flatten", True, "one angle for a whole tensor; without it, one for each of its rows"),),
    ),
    Method("multislerp", "Multi-SLERP of the deltas", weight=0.5, scales="weights"),
    Method(
        "karcher",
        "Karcher mean of the {} whole models (arXiv 2603.04972)",
        layout="models",
        extras=(
            Extra("max_iter", 10, "mergekit's own; models this close need no second step", lowest=1),
            Extra("tol", 1e-5, "mergekit's own: angles below it count as none", ends=False),
        ),
    ),
    Method(
        "sce",
        "SCE (arXiv 2408.07990)",
        extras=(
            Extra(
                "select_topk",
                1.0,
                "of the entries that differ between the branches; the paper's 0.1 would throw away nine tenths of a "
                "delta that is sparse already",
                highest=1.0,
            ),
        ),
    ),
    Method(
        "model_stock",
        "Model Stock (arXiv 2403.19522)",
        least=2,
        extras=(Extra("filter_wise", False, "one angle for a whole tensor; with it, one for each of its rows"),),
    ),
    Method("ram", "Reinforced Agent Merging (arXiv 2601.13572)", extras=(_RAM_EPSILON,), searched=()),
    Method(
        "ramplus_tl",
        "Reinforced Agent Merging Plus, tensor by tensor (arXiv 2601.13572)",
        extras=(
            _RAM_EPSILON,
            Extra("r", 0.1, "mergekit's own: how much a branch's own entries grow with its overlap"),
            Extra("alpha", 0.2, "mergekit's own: where that growth ends, so at most 1 + r · alpha"),
        ),
    ),
)
TIES_GLOBAL = "ties_global"
"""What a recipe calls TIES with the trim of its paper, which `axolotl paft merge` has and mergekit has not."""
METHODS = {method.name: method for method in _ALL}
NOT_OFFERED = {
    "arcee_fusion": "it fuses one model into one other. Between two branches it takes from the second what differs most from "
    "the first, and where the second never moved that is to undo the first's training",
    "nearswap": "it fuses one model into one other. Between two branches it replaces the first's small changes by the second's "
    "values, which where the second never moved are the base's",
    "passthrough": "it copies one model and merges nothing",
}
"""mergekit's other methods → why they make no sense for branches of one base model."""


def how_it_trims(merge_method: str) -> str:
    """Which trim a recipe's merge method has, for those that keep the largest entries; empty for the others."""
    if merge_method == TIES_GLOBAL:
        return f"{TIES_GLOBAL} trims each whole delta, as the TIES paper does. Plain mergekit-yaml has no such method."
    method = METHODS.get(merge_method)
    if method is None or method.selects != "largest":
        return ""
    return f"{merge_method} trims each tensor by itself, as mergekit does."


def no_such_method(name: str) -> str:
    """What to say of a method that is not here."""
    if name in NOT_OFFERED:
        return f"--method {name}: {NOT_OFFERED[name]}. Take one of {', '.join(METHODS)}."
    return f"--method {name}: not one of {', '.join(METHODS)}. {did_you_mean(name, METHODS)}".rstrip()


def extra_problems(method: Method, extras: Mapping[str, Value]) -> list[str]:
    """What is wrong with the values given for extras, one sentence each."""
    problems = []
    for name, value in extras.items():
        option, extra = f"--{name.replace('_', '-')}", method.extra_called(name)
        if name not in extra_names():
            problems.append(f"{option}: no method takes it. {did_you_mean(name, extra_names())}".rstrip())
        elif extra is None:
            takes = takers(lambda other, name=name: other.extra_called(name) is not None)  # type: ignore[misc]
            problems.append(f"{option}: {method.name} does not take it. Leave it out, or take one of {takes}.")
        elif not extra.allows(value):
            problems.append(f"{option} {value}: {extra.range_in_words()}.")
    return problems


def takers(takes: Callable[[Method], bool]) -> str:
    """The methods that take something, as a list for a message."""
    return ", ".join(method.name for method in METHODS.values() if takes(method))


def extra_names() -> list[str]:
    """The names of all extras, each once, in the order of the methods."""
    return list(dict.fromkeys(extra.name for method in METHODS.values() for extra in method.extras))
