"""What is searched: for each merge method the ranges of its settings, and a proposal drawn from them.

No model is searched twice under two names. A factor on both weights is a scale, so methods that add weighted deltas get
weights and no scale, and TIES' disjoint mean, which weights hardly sway where deltas are sparse, gets a scale and no weights.
Linear is Task Arithmetic with smaller weights, so it is tried at its defaults alone. Whoever gives a range gets it searched.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paft_plugin.fusion.recipe.methods import METHODS

if TYPE_CHECKING:
    import optuna

Pair = tuple[float, float]
Options = dict[str, Any]
"""Of a `RecipeRequest`: what was chosen, by its names; what is left to the method is absent."""

WEIGHTS: Pair = (0.1, 1.5)  # around 1, where a branch acts as it was trained
DEFAULTS: dict[str, dict[str, Pair]] = {
    # Above a delta's share of non-zeros the density trims nothing; below, a dense branch becomes a sparse one.
    "ties": {"density": (0.02, 1.0), "weight": WEIGHTS, "scale": (0.4, 1.6)},
    # What is kept grows by 1/density, so little of a sparse delta may be dropped before noise is all that is left.
    "dare_ties": {"density": (0.2, 0.95), "weight": WEIGHTS},
    "dare_linear": {"density": (0.2, 0.95), "weight": WEIGHTS},
    "task_arithmetic": {"weight": WEIGHTS},
    "linear": {},
}
"""Method → setting → where it is searched, for a sparse SFT delta beside a dense preference delta."""


@dataclass(frozen=True)
class Space:
    """One method's settings and where they are searched."""

    method: str
    ranges: Mapping[str, Pair]

    @property
    def searched(self) -> bool:
        """Whether there is anything to choose."""
        return bool(self.ranges)

    @property
    def has_mean(self) -> bool:
        """TIES has two forms: the disjoint mean (`normalize`, no weights), and the weighted sum (no scale)."""
        return self.method == "ties"

    def default(self) -> Options:
        """The parameters of the method's defaults as `propose` would name them; empty if they lie outside the ranges."""
        method = METHODS[self.method]
        values = {"density": method.density, "weight": method.weight, "scale": 1.0}
        if not all(low <= float(values[name] or 0) <= high for name, (low, high) in self.ranges.items()):
            return {}
        parameters: Options = {}
        if self.has_mean:
            parameters["ties.normalize"] = True
        for name in self.ranges:
            if name == "weight":
                weights = {} if self.has_mean else dict.fromkeys(("weight_sft", "weight_preference"), values["weight"])
                parameters |= {f"{self.method}.{key}": value for key, value in weights.items()}
            else:
                parameters[f"{self.method}.{name}"] = values[name]
        return parameters

    def propose(self, trial: optuna.trial.BaseTrial) -> Options:
        """Choose a value for everything in the space."""
        options: Options = {}

        def choose(option: str, name: str) -> None:
            low, high = self.ranges[name]
            # A density acts by its ratios, the others by their differences.
            value = trial.suggest_float(f"{self.method}.{option}", low, high, log=name == "density")
            options[option] = min(max(float(f"{value:.3g}"), low), high)

        if "density" in self.ranges:
            choose("density", "density")
        mean = self.has_mean and trial.suggest_categorical("ties.normalize", [True, False])
        if self.has_mean:
            options["normalize"] = mean
        if "weight" in self.ranges and not mean:
            choose("weight_sft", "weight")
            choose("weight_preference", "weight")
        if "scale" in self.ranges and (mean or not self.has_mean):
            choose("scale", "scale")
        return options


def propose(trial: optuna.trial.BaseTrial, spaces: Mapping[str, Space]) -> tuple[str, Options]:
    """Choose a method that has something to choose, and its settings."""
    method = trial.suggest_categorical("method", [name for name, space in spaces.items() if space.searched])
    return method, spaces[method].propose(trial)


def make_spaces(methods: Mapping[str, Mapping[str, Pair]]) -> dict[str, Space]:
    """The space of each method: the given ranges, the defaults for the rest."""
    return {name: Space(name, {**DEFAULTS.get(name, {}), **given}) for name, given in methods.items()}


def range_problems(name: str, given: Mapping[str, Pair]) -> list[str]:
    """What is wrong with the ranges of a method, one line each that begins with the setting."""
    method = METHODS[name]
    problems = []
    for setting, (low, high) in given.items():
        shown = f"{setting}: [{low:g}, {high:g}]"
        if setting == "density" and method.density is None:
            problems.append(f"{setting}: {name} keeps every entry. Leave it out.")
        elif setting == "weight" and method.weight is None:
            problems.append(f"{setting}: {name} takes no weights. Leave it out.")
        elif low > high:
            problems.append(f"{shown} runs backwards. Write the lowest first.")
        elif not low > 0 or not math.isfinite(high):
            problems.append(f"{shown} must be above 0.")
        elif setting == "density" and (high > 1 or (high == 1 and method.drops_at_random)):
            problems.append(f"{shown} must {'be below 1' if method.drops_at_random else 'be at most 1'}.")
    return problems


def seed_of(seed: int, finished: int) -> int:
    """The sampler's seed after so many finished trials: a search that was cut off proposes what it would have proposed."""
    return int.from_bytes(hashlib.sha256(f"{seed} {finished}".encode()).digest()[:4], "big")
