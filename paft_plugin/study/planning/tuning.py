"""How a study tunes each way of combining: the settings of its trials, the same ones in all seeds and forms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from paft_plugin.fusion.recipe.settings import Pair
from paft_plugin.search.space import make_spaces
from paft_plugin.study.config import StudyConfig

FACTORS = (0.5, 2.0, 0.25, 4.0, 0.7, 1.4, 0.35, 2.8, 0.125, 8.0)
"""On the learning rate of the second of two trainings, in the order in which they are tried."""
AROUND: Pair = (0.25, 4.0)
"""Where a factor on what a config says is searched."""
EXTRAS: Mapping[str, Mapping[str, Pair]] = {"ram": {"epsilon": (1e-6, 1e-3)}}
"""What is tuned of a method that has none of the usual settings; by ratio."""
SOBOL_SEED, DIMENSIONS = 17, 16

Settings = dict[str, Any]


class _Coordinates:
    """What `Space.propose` takes for a trial: each choice is the next coordinate of a point in the unit cube."""

    def __init__(self, point: Sequence[float]) -> None:
        self._left = iter(point)

    def suggest_float(self, _name: str, low: float, high: float, *, log: bool = False) -> float:
        at = next(self._left)
        return float(low * (high / low) ** at if log else low + (high - low) * at)

    def suggest_categorical(self, _name: str, choices: Sequence[Any]) -> Any:
        return choices[int(next(self._left) * len(choices))]


def points(count: int) -> list[list[float]]:
    """The first points of a scrambled Sobol sequence, always the same ones: settings are the same in all seeds."""
    from scipy.stats import qmc

    exponent = max(count - 1, 0).bit_length()
    found = qmc.Sobol(DIMENSIONS, scramble=True, seed=SOBOL_SEED).random_base2(exponent)[:count]
    return cast("list[list[float]]", found.tolist())


def by_ratio(at: float, between: Pair) -> float:
    return float(f"{between[0] * (between[1] / between[0]) ** at:.3g}")


def _halving(index: int) -> float:
    """½, ¼, ¾, ⅛, ⅝ …: numbers in between, each as far from those before as can be."""
    value, part = 0.0, 0.5
    while index:
        value, index, part = value + part * (index & 1), index >> 1, part / 2
    return value


Draw = Callable[[int, Sequence[float]], Settings]
"""The settings of a trial, by its number from 2 and coordinates."""


def of_method(method: str, study: StudyConfig) -> Draw | None:
    """How a merge method is tuned; None where it has nothing to tune."""
    if method in EXTRAS:
        return lambda _number, point: {
            "extras": {
                name: by_ratio(at, where) for at, (name, where) in zip(point, EXTRAS[method].items(), strict=False)
            }
        }
    given = study.search.methods.get(method, {}) if study.search else {}
    space = make_spaces({method: given})[method]
    return (lambda _number, point: space.propose(cast("Any", _Coordinates(point)))) if space.searched else None


def of_alpha(number: int, _point: Sequence[float]) -> Settings:
    alpha = _halving(number)
    return {"weight_sft": 1 - alpha, "weight_preference": alpha}


def flat(settings: Mapping[str, Any]) -> dict[str, float | str]:
    """Settings of a recipe as one mapping of numbers."""
    flat: dict[str, float | str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= {str(key): float(each) for key, each in value.items()}
        elif isinstance(value, (tuple, list)):
            flat |= {f"{name}_{index}": float(each) for index, each in enumerate(value, start=1)}
        else:
            flat[name] = float(value)
    return flat


def rate_factor(trial: int) -> float:
    """On the learning rate of the second of two trainings, in a trial from the second on."""
    if trial - 2 < len(FACTORS):
        return FACTORS[trial - 2]
    at = points(trial)[-1][1]  # the first coordinate is that of the penalty's strength
    return by_ratio(at, (FACTORS[-2], FACTORS[-1]))
