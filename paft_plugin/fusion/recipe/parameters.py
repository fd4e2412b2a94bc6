"""What mergekit is told of the settings of a merge: each parameter, and why it has its value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from paft_plugin.fusion.recipe.methods import Method
from paft_plugin.fusion.recipe.settings import (
    DEPTH,
    TWO,
    WEIGHT,
    BranchName,
    PerTensor,
    RecipeSettings,
    rounded,
)

WHY_GLOBAL = "of all entries of the whole delta, as the TIES paper has it (its top 20 %), not of each tensor"
ORDINALS = {2: "second", 3: "third", 4: "fourth", 5: "fifth"}


@dataclass(frozen=True)
class Parameter:
    """A parameter as mergekit's YAML holds it, and why it has its value."""

    name: str
    value: Any
    reason: str = ""
    model: int | None = None
    """For which model: a branch by its place, or the base as one more behind them; None: for the merge as a whole."""


def parameters(
    method: Method,
    settings: RecipeSettings,
    branches: Sequence[BranchName] = TWO,
    idle: Sequence[bool] = (),
    behind: Sequence[str] = (),
) -> list[Parameter]:
    """Everything that a recipe tells mergekit for settings without problems, in the order in which it is written.

    `idle` says for each branch whether nothing was said about its density and the method's would trim nothing of it; `behind`
    are the tensors behind the last layer that a branch changes.
    """
    scale = 1.0 if settings.scale is None else settings.scale
    idle = idle or [False] * len(branches)
    weights, densities = settings.weights(method, branches) or [], settings.densities(method, branches, idle)
    # Without a λ, a factor on the merged delta stands in weights that add up to it.
    has_depth = any(weight.has_depth for weight in weights)
    in_weights = method.scales in ("base", "weights") and (scale != 1 or has_depth)
    total = sum(weight.value for weight in weights)

    def scaled(weight: float) -> float:
        return scale * weight / total if in_weights else weight

    found, extras = [], {extra: settings.extras.get(extra.name, extra.default) for extra in method.extras}
    for place in range(len(branches)):
        if weights:
            why = _why_depth(weights, place)
            found.append(Parameter("weight", weights[place].content(scaled, behind), why, place))
        if densities is not None:
            why = _why_density(method, settings, idle, place)
            found.append(Parameter("density", densities[place].content(), why, place))
        for extra, value in extras.items():
            if extra.per_branch:
                why = extra.reason if place == 0 else ""  # once is enough
                found.append(Parameter(extra.name, value, why, place))
    if in_weights and method.scales == "base":
        found.append(_rest_of_base(weights, scaled, scale, behind))
    found += _normalizing(method, settings, scale, in_weights)
    found += [Parameter(one.name, value, one.reason) for one, value in extras.items() if not one.per_branch]
    if method.scales == "lambda":
        found.append(Parameter("lambda", scale, "scale of the merged delta"))
    return found


def _rest_of_base(
    weights: Sequence[PerTensor], scaled: Callable[[float], float], scale: float, behind: Sequence[str]
) -> Parameter:
    """Linear has no λ: the base as one more model takes the share that the deltas lose, 1 − S, in each layer its own."""
    has_depth = any(weight.has_depth for weight in weights)
    why = f"scale {scale}{' and depth' if has_depth else ''}: the base as a "
    why += f"{ORDINALS.get(len(weights) + 1, 'last')} model, with the share that the deltas lose"
    if not has_depth:
        return Parameter("weight", 1 - scale, why, len(weights))
    ends = [1 - sum(scaled(weight.value) * weight.depth[end] for weight in weights) for end in (0, 1)]
    rest = PerTensor(1.0, depth=(rounded(ends[0]), rounded(ends[1])))
    return Parameter("weight", rest.content(behind=behind), why, len(weights))


def _why_depth(weights: Sequence[PerTensor], place: int) -> str:
    if not weights[place].has_depth or any(weight.has_depth for weight in weights[:place]):
        return ""
    return (
        "from the first layer (and the embedding) to the last (and what follows it), linearly (LiNeS, arXiv 2410.17146)"
    )


def _why_density(method: Method, settings: RecipeSettings, idle: Sequence[bool], place: int) -> str:
    if idle[place]:
        return f"so sparse that the largest {method.density:.0%} of each tensor hold all of it: trimming would only cost time"
    why = WHY_GLOBAL if settings.trim == "global" else method.density_reason
    return why if all(idle[:place]) else ""


def _normalizing(method: Method, settings: RecipeSettings, scale: float, in_weights: bool) -> list[Parameter]:
    """Whether what is summed is divided by the weights."""
    if method.scales == "base":
        return [Parameter("normalize", True, "a weighted mean: weights are divided by their sum")]
    if method.scales == "weights":
        # Unnormalised weights act as a factor: mergekit multiplies the mean direction by the weighted sum of the norms.
        why = "the mean direction at the mean length: weights are divided by their sum"
        if in_weights:
            why = f"scale {scale} stands in the weights, which are not divided by their sum"
        return [Parameter("normalize_weights", not in_weights, why)]
    if method.normalizes is None:
        return []
    weighted = bool(settings.given(WEIGHT) or settings.given(DEPTH))
    normalize = settings.normalize
    if normalize is None:
        # Published TIES has no weights and takes the mean over the branches that agree; written weights act as written.
        normalize = method.normalizes and not weighted
    return [Parameter("normalize", normalize, _why_normalize(method, normalize, weighted))]


def _why_normalize(method: Method, normalize: bool, weighted: bool) -> str:
    if not method.normalizes:
        return "as asked: divided by the weights that take part" if normalize else "the weighted sum, as published"
    if not normalize:
        return "weights act as written; if true, an entry that one branch alone changes is divided by its own weight"
    if weighted:
        return (
            "as asked; an entry that one branch alone changes is divided by its own weight, so weights do nothing there"
        )
    return "the paper's disjoint mean: each entry is averaged over the branches that agree on its sign"
