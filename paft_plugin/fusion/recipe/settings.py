"""The settings of a merge: what each is called, which methods take it, what it may be, and what mergekit is told of it.

A setting is a field of `RecipeSettings`, with its `Setting` beside its type. `paft.yml`, the options of `axolotl paft recipe`,
the ranges of `axolotl paft search` and the recipe itself are all made from these fields, so a new setting is a field here,
a `Setting`, and its parameter in `parameters`. What only few methods take is no setting, but an `Extra` in `methods.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from paft_plugin.fusion.recipe.methods import METHODS, Method, Value, extra_problems, no_such_method, takers
from paft_plugin.schema import known

Pair = tuple[float, float]
MethodName = Annotated[str, AfterValidator(lambda name: known("method", name, list(METHODS)))]
"""A merge method in a file; another word is refused with the closest one."""


@dataclass(frozen=True)
class Setting:
    """What is to be known of a setting beside its fields' names and types. Fields for one branch alone share it."""

    name: str
    default: Callable[[Method], Value | None]
    """A method's own value; None where the method does not take the setting."""
    untaken: str
    """What is true of a method that does not take it: the end of a sentence."""
    fault: Callable[[str, float, Method], str] = lambda _option, _value, _method: ""
    """What is wrong with an option's value, in a sentence; empty if nothing is."""
    label: str = ""
    """How messages call it where several options are one thing."""
    way_out: Callable[[Method], str] = lambda _method: "Leave it out"
    """What to do instead, for a method that does not take it."""
    by_tensor: bool = False
    """Whether `--filter` can give some tensors another value."""
    searched: Pair | None = None
    """Where `axolotl paft search` looks for its best value; None: it does not."""
    searched_at_random: Pair | None = None
    """The same for methods that drop entries by chance, if it is another."""
    by_ratio: bool = False
    """Whether it acts by its ratios (0.1 to 0.2 is as far as 0.2 to 0.4) rather than by its differences."""
    in_mean: bool | None = None
    """Of TIES' two forms, the disjoint mean and the weighted sum, whether it is searched in the mean; None: in both."""

    @property
    def fields(self) -> list[str]:
        """The fields that set it, without those that only refine another one."""
        names = [name for name, setting in SETTINGS.items() if setting is self]
        return [self.name] if self.name in names else names

    def range_for(self, method: Method) -> Pair:
        """Where it is searched for a method."""
        assert self.searched is not None
        return self.searched_at_random if method.drops_at_random and self.searched_at_random else self.searched


def _density_fault(option: str, density: float, method: Method) -> str:
    if not 0 < density <= 1:
        return f"{option} {density}: must be above 0 and at most 1: the share of entries to keep."
    if method.drops_at_random and density == 1:
        return f"{option} 1: {method.name} would drop nothing. Take ties or task_arithmetic, or give less than 1."
    return ""


def _weight_fault(option: str, weight: float, _method: Method) -> str:
    return "" if math.isfinite(weight) else f"{option} {weight}: not a finite number. Give one like 0.5."


def _scale_fault(option: str, scale: float, _method: Method) -> str:
    if math.isfinite(scale) and scale > 0:
        return ""
    return f"{option} {scale}: must be a finite number above 0. 1 leaves the merged delta as it is."


DENSITY = Setting(
    "density",
    default=lambda method: method.density,
    untaken="keeps every entry",
    fault=_density_fault,
    by_tensor=True,
    # Above a delta's share of non-zeros the density trims nothing; below, a dense branch becomes a sparse one. Drawn by
    # chance, what is kept grows by 1/density: of a sparse delta little may go before noise is all that is left.
    searched=(0.02, 1.0),
    searched_at_random=(0.2, 0.95),
    by_ratio=True,
)
WEIGHT = Setting(
    "weight",
    default=lambda method: method.weight,
    untaken="takes no weights",
    fault=_weight_fault,
    label="--weight-…",
    way_out=lambda method: "Give --t instead" if method.extra_called("t") else "Leave the weights out",
    by_tensor=True,
    searched=(0.1, 1.5),  # around 1, where a branch acts as it was trained
    in_mean=False,
)
SCALE = Setting(
    "scale",
    default=lambda method: None if method.scales is None else 1.0,
    untaken="has no factor on the merged delta",
    fault=_scale_fault,
    searched=(0.4, 1.6),
    in_mean=True,
)
NORMALIZE = Setting(
    "normalize",
    default=lambda method: method.normalizes,
    untaken="has no choice there",
    label="--normalize/--no-normalize",
)


@dataclass(frozen=True)
class Filter:
    """Another value of a setting for the tensors whose names hold a word."""

    name: str
    """The word."""
    setting: str
    """A field of `RecipeSettings`, with dashes: `density` for both branches, or that of one branch."""
    value: float

    def __str__(self) -> str:
        return f"{self.name}:{self.setting}={self.value}"


def parse_filter(text: Any) -> Any:
    """`mlp:density-sft=0.1` as a `Filter`; what is no text stays as it is.

    Raises:
        ValueError: It is not of this form, or names a setting that is the same for all tensors.
    """
    if not isinstance(text, str):
        return text
    name, colon, rest = text.partition(":")
    option, equals, number = (part.strip() for part in rest.partition("="))
    option = option.replace("_", "-")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not (name.strip() and colon and equals) or math.isnan(value):
        raise ValueError(
            f"--filter {text}: not of the form NAME:SETTING=VALUE. Write it like --filter NAME:SETTING=VALUE, such as "
            "--filter mlp:density-sft=0.1."
        )
    by_tensor = [field.replace("_", "-") for field, setting in SETTINGS.items() if setting.by_tensor]
    if option not in by_tensor:
        raise ValueError(
            f"--filter {text}: {option} cannot be set by tensor. It must be one of {', '.join(by_tensor)}."
        )
    return Filter(name.strip(), option, value)


class RecipeSettings(BaseModel):
    """How two branches are merged. What is left out is the method's own default; what it does not take must be left out.

    The descriptions are the help of `axolotl paft recipe`, in the order of its options.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    density: Annotated[float | None, DENSITY] = Field(
        default=None, description="Share of each delta's entries to keep. [ties: 0.2, DARE: 0.5]"
    )
    density_sft: Annotated[float | None, DENSITY] = Field(
        default=None, description="The same for the SFT branch alone."
    )
    density_preference: Annotated[float | None, DENSITY] = Field(
        default=None, description="The same for the preference branch alone."
    )
    weight_sft: Annotated[float | None, WEIGHT] = Field(
        default=None, description="Weight of the SFT branch. [1, linear: 0.5]"
    )
    weight_preference: Annotated[float | None, WEIGHT] = Field(
        default=None, description="Weight of the preference branch. [1, linear: 0.5]"
    )
    filter: list[Annotated[Filter, BeforeValidator(parse_filter)]] = Field(
        default_factory=list,
        description="Another density or weight for the tensors with NAME in their names, such as mlp:density-sft=0.1; "
        "may be repeated, the first that fits counts.",
    )
    scale: Annotated[float | None, SCALE] = Field(
        default=None, description="Factor on the merged delta (mergekit's lambda). [1]"
    )
    normalize: Annotated[bool | None, NORMALIZE] = Field(
        default=None,
        description="Divide each entry by the weights that take part. [ties without weights: yes, otherwise no]",
    )
    extras: dict[str, Value] = Field(
        default_factory=dict, description="Further parameters of the method, by mergekit's names."
    )

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> tuple[RecipeSettings, list[str]]:
        """Settings from options of a command line, without the filters that cannot be read, and a problem for each of those."""
        filters, problems = [], []
        for text in given.get("filter", ()):
            try:
                filters.append(parse_filter(text))
            except ValueError as error:
                problems.append(str(error))
        return cls(**{**given, "filter": filters}), problems

    def options(self) -> list[str]:
        """The same settings as options of `axolotl paft recipe`."""
        words = []
        for name, value in {**{name: getattr(self, name) for name in SETTINGS}, **self.extras}.items():
            option = name.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{option}" if value else f"--no-{option}")
            elif value is not None:
                words += [f"--{option}", str(value)]
        return words + [word for one in self.filter for word in ("--filter", str(one))]

    def given(self, setting: Setting) -> dict[str, Any]:
        """Option → value, of everything that was said about a setting."""
        fields = {name.replace("_", "-"): getattr(self, name) for name, of in SETTINGS.items() if of is setting}
        own = {f"--{option}": value for option, value in fields.items() if value is not None}
        return own | {f"--filter {one.name}:{one.setting}": one.value for one in self.filter if one.setting in fields}

    def says_density(self, branch: str) -> bool:
        """Whether anything was said about the density of a branch, `sft` or `preference`."""
        own = self.density, getattr(self, f"density_{branch}")
        return own != (None, None) or bool(self._conditions(DENSITY, branch))

    def weights(self, method: Method) -> tuple[PerTensor, PerTensor] | None:
        """The weights of SFT and preference branch; None for a method that takes none."""
        default = method.weight
        if default is None:
            return None
        return self._of_branch(WEIGHT, "sft", default), self._of_branch(WEIGHT, "preference", default)

    def densities(self, method: Method, idle: tuple[bool, bool] = (False, False)) -> tuple[PerTensor, PerTensor] | None:
        """The densities of SFT and preference branch; None for a method that keeps every entry.

        Where nothing was said the method's default counts, or 1 for a branch of which that would trim nothing (`idle`).
        """
        default = method.density
        if default is None:
            return None
        sft, preference = (1.0 if trims_nothing else default for trims_nothing in idle)
        return self._of_branch(DENSITY, "sft", sft), self._of_branch(DENSITY, "preference", preference)

    def _of_branch(self, setting: Setting, branch: str, default: float) -> PerTensor:
        chosen = getattr(self, f"{setting.name}_{branch}")
        if chosen is None:
            chosen = getattr(self, setting.name, None)  # for both branches, where there is such a field
        return PerTensor(default if chosen is None else chosen, self._conditions(setting, branch))

    def _conditions(self, setting: Setting, branch: str) -> tuple[tuple[str, float], ...]:
        """(filter, value) of a setting for one branch, in the order given."""
        names = (setting.name, f"{setting.name}-{branch}")
        return tuple((one.name, one.value) for one in self.filter if one.setting in names)


SETTINGS: dict[str, Setting] = {
    name: setting
    for name, field in RecipeSettings.model_fields.items()
    for setting in field.metadata
    if isinstance(setting, Setting)
}
"""Field of `RecipeSettings` → what it sets."""


@dataclass(frozen=True)
class PerTensor:
    """A parameter's value for every tensor of a branch."""

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


# --- what is wrong with settings ----------------------------------------------------------------------------------------


def setting_problems(name: str, settings: RecipeSettings) -> list[str]:
    """Every mistake in the settings of a method, a sentence each, with what to do. They are named as the options."""
    method = METHODS.get(name)
    if method is None:
        return [no_such_method(name)]
    problems = {setting.name: _own_problems(setting, method, settings) for setting in dict.fromkeys(SETTINGS.values())}
    if not problems["density"]:
        problems["density"] = _window_problems(method, settings)
    if method.weight is not None:
        problems["weight"] += _sum_problems(method, settings)
    if not problems["scale"]:
        problems["scale"] = _scale_beside_filters(method, settings)
    extras = extra_problems(method, settings.extras)
    return list(dict.fromkeys([*chain(*problems.values()), *extras, *_unreachable_filters(settings)]))


def _own_problems(setting: Setting, method: Method, settings: RecipeSettings) -> list[str]:
    """What can be said of one setting alone: the method does not take it, or its value is out of range."""
    given = settings.given(setting)
    if setting.default(method) is not None:
        return [fault for option, value in given.items() if (fault := setting.fault(option, value, method))]
    takes = takers(lambda other: setting.default(other) is not None)
    way_out = setting.way_out(method)
    return [
        f"{setting.label or option}: {method.name} {setting.untaken}. {way_out}, or take one of {takes}."
        for option in given
    ]


def _window_problems(method: Method, settings: RecipeSettings) -> list[str]:
    """DELLA draws with chances from density − epsilon to density + epsilon; Breadcrumbs takes outliers below density 1."""
    densities = settings.densities(method)
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


def _sum_problems(method: Method, settings: RecipeSettings) -> list[str]:
    """Weights that together leave nothing, or that are divided by a sum of 0."""
    weights = settings.weights(method)
    assert weights is not None
    sft, preference = weights
    if sft.value == 0 and preference.value == 0:
        return [
            "--weight-sft and --weight-preference are both 0: the merged model would be the base. Give one a weight."
        ]
    if not (settings.normalize or method.normalizes is None):
        return []
    return [
        f"weights {first} and {second} add up to 0, and {method.name} divides by their sum. Change one."
        for first in sft.values
        for second in preference.values
        if first + second == 0
    ]


def _scale_beside_filters(method: Method, settings: RecipeSettings) -> list[str]:
    if settings.scale in (None, 1) or method.scales == "lambda":
        return []
    if not any(weight.by_filter for weight in settings.weights(method) or ()):
        return []
    return [
        f"--scale and --filter …:weight-…: {method.name} writes a scale into the weights, which then cannot differ "
        "by tensor as well. Give one of the two, or take task_arithmetic."
    ]


def _unreachable_filters(settings: RecipeSettings) -> list[str]:
    """Filters behind another one that takes every tensor that they are for."""
    problems = []
    for setting in (DENSITY, WEIGHT):
        for branch in ("sft", "preference"):
            names = [name for name, _ in settings._conditions(setting, branch)]
            problems += [
                f"--filter {name}: never reached, since {earlier} comes first and takes the same tensors. "
                f"Put {name} before it."
                for place, name in enumerate(names)
                for earlier in names[:place]
                if earlier in name
            ]
    return problems


# --- what mergekit is told ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parameter:
    """A parameter as mergekit's YAML holds it, and why it has its value."""

    name: str
    value: Any
    reason: str = ""
    model: int | None = None
    """For which model: 0 SFT branch, 1 preference branch, 2 the base as a third one; None: for the merge as a whole."""


def parameters(method: Method, settings: RecipeSettings, idle: tuple[bool, bool] = (False, False)) -> list[Parameter]:
    """Everything that a recipe tells mergekit for settings without problems, in the order in which it is written.

    `idle` says for each branch whether nothing was said about its density and the method's would trim nothing of it.
    """
    scale = 1.0 if settings.scale is None else settings.scale
    weights, densities = _weight_contents(method, settings, scale), settings.densities(method, idle)
    found, extras = [], {extra: settings.extras.get(extra.name, extra.default) for extra in method.extras}
    for place in (0, 1):
        if weights is not None:
            found.append(Parameter("weight", weights[place], model=place))
        if densities is not None:
            why = _why_density(method, idle, place)
            found.append(Parameter("density", densities[place].content(), why, place))
        for extra, value in extras.items():
            if extra.per_branch:
                why = extra.reason if place == 0 else ""  # once is enough
                found.append(Parameter(extra.name, value, why, place))
    if method.scales == "base" and scale != 1:
        # Linear has no λ: the base as a third model takes the share that the deltas lose, 1 − S.
        why = f"scale {scale}: the base as a third model, with the share that the deltas lose"
        found.append(Parameter("weight", 1 - scale, why, 2))
    found += _normalizing(method, settings, scale)
    found += [Parameter(one.name, value, one.reason) for one, value in extras.items() if not one.per_branch]
    if method.scales == "lambda":
        found.append(Parameter("lambda", scale, "scale of the merged delta"))
    return found


def _weight_contents(method: Method, settings: RecipeSettings, scale: float) -> list[Any] | None:
    weights = settings.weights(method)
    if weights is None:
        return None
    if scale != 1 and method.scales in ("base", "weights"):
        total = sum(weight.value for weight in weights)
        return [scale * weight.value / total for weight in weights]
    return [weight.content() for weight in weights]


def _why_density(method: Method, idle: tuple[bool, bool], place: int) -> str:
    if idle[place]:
        return f"so sparse that the largest {method.density:.0%} of each tensor hold all of it: trimming would only cost time"
    return method.density_reason if place == 0 or idle[0] else ""


def _normalizing(method: Method, settings: RecipeSettings, scale: float) -> list[Parameter]:
    """Whether what is summed is divided by the weights."""
    if method.scales == "base":
        return [Parameter("normalize", True, "a weighted mean: weights are divided by their sum")]
    if method.scales == "weights":
        # Unnormalised weights act as a factor: mergekit multiplies the mean direction by the weighted sum of the norms.
        why = "the mean direction at the mean length: weights are divided by their sum"
        if scale != 1:
            why = f"scale {scale} stands in the weights, which are not divided by their sum"
        return [Parameter("normalize_weights", scale == 1, why)]
    if method.normalizes is None:
        return []
    weighted = bool(settings.given(WEIGHT))
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
