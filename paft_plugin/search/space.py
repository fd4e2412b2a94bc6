"""What is searched: for each merge method the ranges of its settings, and a proposal drawn from them.

No model is searched twice under two names. A factor on both weights is a scale, so methods that add weighted deltas get
weights and no scale, and TIES' disjoint mean, which weights hardly sway where deltas are sparse, gets a scale and no weights.
Linear is Task Arithmetic with smaller weights, so it is tried at its defaults alone. Whoever gives a range gets it searched.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paft_plugin.fusion.recipe.methods import METHODS
from paft_plugin.fusion.recipe.settings import SETTINGS, TWO, BranchName, Pair, RecipeSettings, Setting

if TYPE_CHECKING:
    import optuna

Options = dict[str, Any]
"""What was chosen, as fields of `RecipeSettings`, `weight.math` for one branch's; what is left to the method is absent."""

SEARCHED = {setting.name: setting for setting in SETTINGS.values() if setting.searched}
"""What can be searched: name → setting."""
DEFAULTS: dict[str, dict[str, Pair]] = {
    method.name: {name: SEARCHED[name].range_for(method) for name in method.searched}
    for method in METHODS.values()
    if method.searched is not None
}
"""Method → setting → where it is searched, for a sparse SFT delta beside a dense preference delta."""


@dataclass(frozen=True)
class Space:
    """One method's settings and where they are searched."""

    method: str
    ranges: Mapping[str, Pair]
    branches: Sequence[BranchName] = TWO

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
        values = {name: float(SEARCHED[name].default(method) or 0) for name in self.ranges}
        if not all(low <= values[name] <= high for name, (low, high) in self.ranges.items()):
            return {}
        parameters: Options = {"ties.normalize": True} if self.has_mean else {}
        return parameters | {
            parameter: value
            for name, value in values.items()
            if self._varies(SEARCHED[name], mean=True)
            for option in self._options(SEARCHED[name])
            for parameter in self._parameters(option, SEARCHED[name])
        }

    def propose(self, trial: optuna.trial.BaseTrial) -> Options:
        """Choose a value for everything in the space."""
        options: Options = {}
        for name, setting in SEARCHED.items():
            if self.has_mean and setting.in_mean is not None and "normalize" not in options:
                options["normalize"] = trial.suggest_categorical("ties.normalize", [True, False])
            if name in self.ranges and self._varies(setting, options.get("normalize", False)):
                low, high = self.ranges[name]
                for option in self._options(setting):
                    found = (
                        trial.suggest_float(parameter, low, high, log=setting.by_ratio)
                        for parameter in self._parameters(option, setting)
                    )
                    numbers = tuple(min(max(float(f"{value:.3g}"), low), high) for value in found)
                    options[option] = numbers if setting.parts else numbers[0]
        return options

    def _parameters(self, option: str, setting: Setting) -> list[str]:
        """What optuna calls the numbers that an option consists of."""
        parts = [f".{part}" for part in setting.parts] or [""]
        return [f"{self.method}.{option}{part}" for part in parts]

    def _options(self, setting: Setting) -> list[str]:
        """The options that are chosen for a setting: one for each branch, where branches are more than the two roles."""
        if setting.by_branch and [branch.name for branch in self.branches] != [branch.name for branch in TWO]:
            return [f"{setting.name}.{branch.name}" for branch in self.branches]
        return setting.fields

    def _varies(self, setting: Setting, mean: bool) -> bool:
        """Whether there is a choice of a setting in this form of the method."""
        return not self.has_mean or setting.in_mean in (None, mean)


def propose(trial: optuna.trial.BaseTrial, spaces: Mapping[str, Space]) -> tuple[str, Options]:
    """Choose a method that has something to choose, and its settings."""
    method = trial.suggest_categorical("method", [name for name, space in spaces.items() if space.searched])
    return method, spaces[method].propose(trial)


def make_spaces(methods: Mapping[str, Mapping[str, Pair]], branches: Sequence[BranchName] = TWO) -> dict[str, Space]:
    """The space of each method: the given ranges, the defaults for the rest."""
    return {name: Space(name, {**DEFAULTS.get(name, {}), **given}, branches) for name, given in methods.items()}


def settings_of(options: Options) -> RecipeSettings:
    """What was chosen, as settings of a recipe."""
    fields: dict[str, Any] = {}
    for option, value in options.items():
        field, dot, branch = option.partition(".")
        fields[field] = {**fields.get(field, {}), branch: value} if dot else value
    return RecipeSettings(**fields)


def values_of(options: Options, setting: Setting) -> list[float | Pair]:
    """What was chosen for a setting, by branch where there are several values."""
    return [value for option, value in options.items() if option.partition(".")[0] in (setting.name, *setting.fields)]


def range_problems(name: str, given: Mapping[str, Pair]) -> list[str]:
    """What is wrong with the ranges of a method, one line each that begins with the setting."""
    method = METHODS[name]
    problems = []
    for key, (low, high) in given.items():
        setting, shown = SEARCHED[key], f"{key}: [{low:g}, {high:g}]"
        if setting.default(method) is None:
            problems.append(f"{key}: {name} {setting.untaken}. Leave it out.")
        elif low > high:
            problems.append(f"{shown} runs backwards. Write the lowest first.")
        elif not low > 0 or not math.isfinite(high):
            problems.append(f"{shown} must be above 0.")
        elif setting.fault("", high, method):
            problems.append(f"{shown} must {'be below 1' if method.drops_at_random else 'be at most 1'}.")
    return problems


def seed_of(seed: int, finished: int) -> int:
    """The sampler's seed after so many finished trials: a search that was cut off proposes what it would have proposed."""
    return int.from_bytes(hashlib.sha256(f"{seed} {finished}".encode()).digest()[:4], "big")
