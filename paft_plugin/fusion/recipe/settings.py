"""The settings of a merge: what each is called, which methods take it, and what it may be.

A setting is a field of `RecipeSettings`, with its `Setting` beside its type. `paft.yml`, the options of `axolotl paft recipe`,
the ranges of `axolotl paft search` and the recipe itself are all made from these fields, so a new setting is a field here,
a `Setting`, and its parameter in `parameters.py`. What only few methods take is no setting, but an `Extra` in `methods.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from paft_plugin.errors import did_you_mean
from paft_plugin.fusion.recipe.methods import METHODS, Method, Value
from paft_plugin.schema import known

Pair = tuple[float, float]
MethodName = Annotated[str, AfterValidator(lambda name: known("method", name, list(METHODS)))]
"""A merge method in a file; another word is refused with the closest one."""
Role = Literal["sft", "preference"]
ROLES: tuple[Role, ...] = get_args(Role)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""What a branch may be called: part of a file's name."""
OTHERS = "*"
"""In a setting's values by branch: all branches that are not named."""


@dataclass(frozen=True)
class BranchName:
    """A branch as settings speak of it."""

    name: str
    role: Role


TWO = tuple(BranchName(role, role) for role in ROLES)
"""The branches of the smallest case, each called by its role."""


@dataclass(frozen=True)
class Setting:
    """What is to be known of a setting beside its fields' names and types. Fields for one role alone share it."""

    name: str
    default: Callable[[Method], Value | str | None]
    """A method's own value; None where the method does not take the setting."""
    untaken: str
    """What is true of a method that does not take it: the end of a sentence."""
    fault: Callable[[str, float, Method], str] = lambda _option, _value, _method: ""
    """What is wrong with a number of an option, in a sentence; empty if nothing is."""
    parts: tuple[str, ...] = ()
    """What the numbers are called that a value consists of, if it is several."""
    label: str = ""
    """How messages call it where several options are one thing."""
    way_out: Callable[[Method], str] = lambda _method: "Leave it out"
    """What to do instead, for a method that does not take it."""
    by_branch: bool = False
    """Whether branches can have values of their own."""
    by_tensor: bool = False
    """Whether `--filter` can give some tensors another value."""
    searched: Pair | None = None
    """Where `axolotl paft search` looks for its best value; None: it does not."""
    searched_at_random: Pair | None = None
    """The same for methods that drop entries by chance, if it is another."""
    searched_by_role: bool = False
    """Whether a value is searched for each role, rather than one for all branches."""
    by_ratio: bool = False
    """Whether it acts by its ratios (0.1 to 0.2 is as far as 0.2 to 0.4) rather than by its differences."""
    in_mean: bool | None = None
    """Of TIES' two forms, the disjoint mean and the weighted sum, whether it is searched in the mean; None: in both."""

    @property
    def fields(self) -> list[str]:
        """The fields that a search sets, without those that only refine another one."""
        names = [name for name, setting in SETTINGS.items() if setting is self]
        return [name for name in names if (name == self.name) != self.searched_by_role]

    def read(self, text: str) -> Any:
        """A value as the command line has it: `0.5`, or `0.5:1.5` for one of two numbers."""
        numbers = tuple(map(float, text.split(":")))
        if len(numbers) != max(1, len(self.parts)):
            raise ValueError
        return numbers if self.parts else numbers[0]

    def write(self, value: Any) -> str:
        """What `read` reads."""
        return ":".join(map(str, numbers_of(value)))

    def range_for(self, method: Method) -> Pair:
        """Where it is searched for a method."""
        assert self.searched is not None
        return self.searched_at_random if method.drops_at_random and self.searched_at_random else self.searched


def numbers_of(value: Any) -> tuple[float, ...]:
    """The numbers that a setting's value consists of."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _density_fault(option: str, density: float, method: Method) -> str:
    if not 0 < density <= 1:
        return f"{option} {density}: must be above 0 and at most 1: the share of entries to keep."
    if method.drops_at_random and density == 1:
        return f"{option} 1: {method.name} would drop nothing. Take ties or task_arithmetic, or give less than 1."
    return ""


def _weight_fault(option: str, weight: float, _method: Method) -> str:
    return "" if math.isfinite(weight) else f"{option} {weight}: not a finite number. Give one like 0.5."


def _depth_fault(option: str, factor: float, _method: Method) -> str:
    if math.isfinite(factor) and factor >= 0:
        return ""
    return f"{option} {factor}: must be a finite number from 0 on. 1 leaves the weight as it is."


def _scale_fault(option: str, scale: float, _method: Method) -> str:
    if math.isfinite(scale) and scale > 0:
        return ""
    return f"{option} {scale}: must be a finite number above 0. 1 leaves the merged delta as it is."


DENSITY = Setting(
    "density",
    default=lambda method: method.density,
    untaken="keeps every entry",
    fault=_density_fault,
    by_branch=True,
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
    by_branch=True,
    by_tensor=True,
    searched=(0.1, 1.5),  # around 1, where a branch acts as it was trained
    searched_by_role=True,
    in_mean=False,
)
DEPTH = Setting(
    "depth",
    # Where only the ratio of weights counts, a factor on all of them would do nothing.
    default=lambda method: 1.0 if method.weight is not None and method.scales is not None else None,
    untaken="has no weights that could grow with depth",
    fault=_depth_fault,
    parts=("first", "last"),
    by_branch=True,
    searched=(0.1, 2.0),
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
TRIM = Setting(
    "trim",
    default=lambda method: "tensor" if method.name == "ties" else None,
    untaken="has but one way to choose what it keeps",
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
    """`density` or `weight` for all branches, or with a dash and a branch's name or a role for some."""
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
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not (name.strip() and colon and equals) or math.isnan(value):
        raise ValueError(
            f"--filter {text}: not of the form NAME:SETTING=VALUE. Write it like --filter NAME:SETTING=VALUE, such as "
            "--filter mlp:density-sft=0.1."
        )
    by_tensor = [setting.name for setting in dict.fromkeys(SETTINGS.values()) if setting.by_tensor]
    found = re.fullmatch(rf"({'|'.join(by_tensor)})(?:[-_](.+))?", option)
    if found is None:
        raise ValueError(
            f"--filter {text}: {option} cannot be set by tensor. It must be {' or '.join(by_tensor)}, perhaps with a role "
            "or a branch behind it, such as density-sft."
        )
    return Filter(name.strip(), "-".join(filter(None, found.groups())), value)


def _by_branch(setting: Setting) -> Callable[[Any], Any]:
    """A validator of what a file says of branches: one value, or branch → value."""
    wanted = max(1, len(setting.parts))

    def check(given: Any) -> Any:
        for value in given.values() if isinstance(given, Mapping) else [given]:
            numbers = numbers_of(value)
            good = len(numbers) == wanted and all(type(number) in (int, float) for number in numbers)
            if value is not None and not good:
                one = f"[{', '.join(setting.parts)}]" if setting.parts else "a number"
                raise ValueError(f"must be {one}, or that for each of some branches, such as {{math: …, code: …}}.")
        return given

    return check


def _value_of_branch(setting: Setting, text: str) -> tuple[str, Any]:
    """`math=0.5`, or `0.5` for all branches that are not named."""
    name, equals, value = text.rpartition("=")
    try:
        return (name.strip() if equals else OTHERS), setting.read(value)
    except ValueError:
        example = ":".join(("0.5", "1.5")[: max(1, len(setting.parts))])
        raise ValueError(
            f"--{setting.name} {text}: cannot be read. Write it like {example}, or for one branch like math={example}."
        ) from None


class RecipeSettings(BaseModel):
    """How branches are merged. What is left out is the method's own default; what it does not take must be left out.

    Of a branch its own value counts, else that of its role, else the one for all branches.
    The descriptions are the help of `axolotl paft recipe`, in the order of its options.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    density: Annotated[float | dict[str, float] | None, BeforeValidator(_by_branch(DENSITY)), DENSITY] = Field(
        default=None,
        description="Share of each delta's entries to keep, for all branches or as NAME=VALUE for one. [ties: 0.2, DARE: 0.5]",
    )
    density_sft: Annotated[float | None, DENSITY] = Field(default=None, description="The same for SFT branches alone.")
    density_preference: Annotated[float | None, DENSITY] = Field(
        default=None, description="The same for preference branches alone."
    )
    weight: Annotated[float | dict[str, float] | None, BeforeValidator(_by_branch(WEIGHT)), WEIGHT] = Field(
        default=None, description="Weight of the branches, for all or as NAME=VALUE for one. [1, linear: 0.5]"
    )
    weight_sft: Annotated[float | None, WEIGHT] = Field(default=None, description="The same for SFT branches alone.")
    weight_preference: Annotated[float | None, WEIGHT] = Field(
        default=None, description="The same for preference branches alone."
    )
    depth: Annotated[Pair | dict[str, Pair] | None, BeforeValidator(_by_branch(DEPTH)), DEPTH] = Field(
        default=None,
        description="Factors on the weights in the first and in the last layer, linear in between (LiNeS), such as 0.5:1.5; "
        "for all branches or as NAME=FIRST:LAST for one. [1:1]",
    )
    depth_sft: Annotated[Pair | None, DEPTH] = Field(default=None, description="The same for SFT branches alone.")
    depth_preference: Annotated[Pair | None, DEPTH] = Field(
        default=None, description="The same for preference branches alone."
    )
    filter: list[Annotated[Filter, BeforeValidator(parse_filter)]] = Field(
        default_factory=list,
        description="Another density or weight for the tensors with NAME in their names, such as mlp:density-sft=0.1; "
        "may be repeated, the first that fits counts.",
    )
    scale: Annotated[float | None, SCALE] = Field(
        default=None, description="Factor on the merged delta (mergekit's lambda). [1]"
    )
    trim: Annotated[Literal["tensor", "global"] | None, TRIM] = Field(
        default=None,
        description="ties: keep the largest entries of each tensor, as mergekit does, or of the whole delta, as published "
        "(global: for `axolotl paft merge` alone). [tensor]",
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
        """Settings from options of a command line without what cannot be read of them, and a problem for each of those."""
        problems: list[str] = []

        def readable(texts: Sequence[Any], read: Callable[[Any], Any]) -> Iterator[Any]:
            for text in texts:
                try:
                    yield read(text)
                except ValueError as error:
                    problems.append(str(error))

        values = {**given, "filter": [*readable(given.get("filter", ()), parse_filter)]}
        for name, setting in SETTINGS.items():
            texts = given.get(name) or ()
            if setting.by_branch and name == setting.name:
                named = [*readable(texts, partial(_value_of_branch, setting))]
                problems += _said_twice(name, [branch for branch, _ in named])
                own = dict(named)
                values[name] = own.get(OTHERS) if own.keys() <= {OTHERS} else own
            elif setting.parts and texts:
                values[name] = next((value for _, value in readable([texts], partial(_value_of_branch, setting))), None)
        return cls(**values), problems

    def options(self) -> list[str]:
        """The same settings as options of `axolotl paft recipe`."""
        words = []
        for name, setting in SETTINGS.items():
            value, option = getattr(self, name), f"--{name.replace('_', '-')}"
            for branch, own in (value if isinstance(value, dict) else {OTHERS: value}).items():
                words += _as_option(option, own, "" if branch == OTHERS else f"{branch}=", setting.write)
        for name, extra in self.extras.items():
            words += _as_option(f"--{name.replace('_', '-')}", extra, "", str)
        return words + [word for one in self.filter for word in ("--filter", str(one))]

    def only(self, branches: Sequence[BranchName]) -> RecipeSettings:
        """The same settings without what is said of other branches."""
        kept = {OTHERS, *(branch.name for branch in branches)}
        change: dict[str, Any] = {}
        for name, setting in SETTINGS.items():
            value = getattr(self, name)
            if isinstance(value, dict):
                change[name] = {branch: own for branch, own in value.items() if branch in kept} or None
            elif setting.by_branch and name != setting.name and not _with_role(name, branches):
                change[name] = None
        strange = [one for branch, one in self._filters_by_branch() if branch not in {*kept, *_roles(branches)}]
        change["filter"] = [one for one in self.filter if one not in strange]
        return self.model_copy(update=change)

    def given(self, setting: Setting) -> dict[str, Any]:
        """Option → value, of everything that was said about a setting."""
        said: dict[str, Any] = {}
        for name, of in SETTINGS.items():
            value, option = getattr(self, name), f"--{name.replace('_', '-')}"
            if of is not setting or value is None:
                continue
            by_name = value if isinstance(value, dict) else {OTHERS: value}
            said |= {option if branch == OTHERS else f"{option} {branch}": own for branch, own in by_name.items()}
        filters = (one for one in self.filter if one.setting.partition("-")[0] == setting.name)
        return said | {f"--filter {one.name}:{one.setting}": one.value for one in filters}

    def says_density(self, branch: BranchName) -> bool:
        """Whether anything was said about the density of a branch."""
        return self._chosen(DENSITY, branch) is not None or bool(self.conditions(DENSITY, branch))

    def weights(self, method: Method, branches: Sequence[BranchName] = TWO) -> list[PerTensor] | None:
        """The weight of each branch; None for a method that takes none."""
        default = method.weight
        if default is None:
            return None
        weights = (self._of_branch(WEIGHT, branch, default) for branch in branches)
        depths = (self._chosen(DEPTH, branch) or NO_DEPTH for branch in branches)
        return [replace(weight, depth=depth) for weight, depth in zip(weights, depths, strict=True)]

    def densities(
        self, method: Method, branches: Sequence[BranchName] = TWO, idle: Sequence[bool] = ()
    ) -> list[PerTensor] | None:
        """The density of each branch; None for a method that keeps every entry.

        Where nothing was said the method's default counts, or 1 for a branch of which that would trim nothing (`idle`).
        """
        default = method.density
        if default is None:
            return None
        trims_nothing = idle or [False] * len(branches)
        return [
            self._of_branch(DENSITY, branch, 1.0 if keeps_all else default)
            for branch, keeps_all in zip(branches, trims_nothing, strict=True)
        ]

    def unknown_branches(self, branches: Sequence[BranchName]) -> list[str]:
        """What is said of branches or roles that are not there, a sentence each."""
        names, problems = [branch.name for branch in branches], []
        for name, setting in SETTINGS.items():
            value, option = getattr(self, name), f"--{name.replace('_', '-')}"
            for branch in value if isinstance(value, dict) else ():
                if branch not in (OTHERS, *names):
                    problems.append(f"{option} {branch}={setting.write(value[branch])}: {_no_branch(branch, names)}")
            if setting.by_branch and name != setting.name and value is not None and not _with_role(name, branches):
                problems.append(
                    f"{option}: no branch has the role {name.removeprefix(f'{setting.name}_')}. Leave it out."
                )
        for branch, one in self._filters_by_branch():
            if branch not in {*names, *_roles(branches)}:
                problems.append(f"--filter {one}: {_no_branch(branch, names)}")
        return problems

    def _of_branch(self, setting: Setting, branch: BranchName, default: float) -> PerTensor:
        chosen = self._chosen(setting, branch)
        return PerTensor(default if chosen is None else chosen, self.conditions(setting, branch))

    def _chosen(self, setting: Setting, branch: BranchName) -> Any:
        """What was said of a branch: of it alone, else of its role, else of all branches."""
        said = getattr(self, setting.name)
        by_name = said if isinstance(said, dict) else {OTHERS: said}
        values = by_name.get(branch.name), getattr(self, f"{setting.name}_{branch.role}"), by_name.get(OTHERS)
        return next((value for value in values if value is not None), None)

    def conditions(self, setting: Setting, branch: BranchName) -> tuple[tuple[str, float], ...]:
        """(filter, value) of a setting for one branch, in the order given."""
        names = (setting.name, f"{setting.name}-{branch.role}", f"{setting.name}-{branch.name}")
        return tuple((one.name, one.value) for one in self.filter if one.setting in names)

    def _filters_by_branch(self) -> Iterator[tuple[str, Filter]]:
        """The filters that are not for all branches, each with the branch or the role that it names."""
        named = ((one.setting.partition("-")[2], one) for one in self.filter)
        return ((branch, one) for branch, one in named if branch)


def _as_option(option: str, value: Any, start: str, write: Callable[[Any], str]) -> list[str]:
    """A value as words of a command line; none if nothing was said."""
    if isinstance(value, bool):
        return [option if value else f"--no-{option.removeprefix('--')}"]
    return [] if value is None else [option, f"{start}{write(value)}"]


def _said_twice(name: str, named: Sequence[str]) -> list[str]:
    """A problem for each branch that an option of the command line names more than once."""
    return [
        f"--{name}{'' if branch == OTHERS else f' {branch}'}: given {named.count(branch)} times. Give one value."
        for branch in dict.fromkeys(named)
        if named.count(branch) > 1
    ]


def _roles(branches: Sequence[BranchName]) -> set[str]:
    return {branch.role for branch in branches}


def _with_role(field: str, branches: Sequence[BranchName]) -> bool:
    """Whether a field for one role, such as `density_sft`, is about any of the branches."""
    return any(field.endswith(f"_{role}") for role in _roles(branches))


def _no_branch(name: str, names: Sequence[str]) -> str:
    there = f"The branches are {', '.join(names)}."
    return f"there is no branch {name}. {did_you_mean(name, names, otherwise=there)}"


SETTINGS: dict[str, Setting] = {
    name: setting
    for name, field in RecipeSettings.model_fields.items()
    for setting in field.metadata
    if isinstance(setting, Setting)
}
"""Field of `RecipeSettings` → what it sets."""


NO_DEPTH: Pair = (1.0, 1.0)


@dataclass(frozen=True)
class PerTensor:
    """A parameter's value for every tensor of a branch."""

    value: float
    by_filter: tuple[tuple[str, float], ...] = ()
    """(filter, value) for tensors whose names hold the filter; the first that fits counts, as in mergekit."""
    depth: Pair = NO_DEPTH
    """Factors on the value in the first and in the last layer."""

    @property
    def has_depth(self) -> bool:
        """Whether it differs by layer."""
        return self.depth != NO_DEPTH

    @property
    def values(self) -> tuple[float, ...]:
        """Every value that some tensor may get, but for the depth."""
        return (*(value for _, value in self.by_filter), self.value)

    def content(self, scaled: Callable[[float], float] = float, behind: Sequence[str] = ()) -> Any:
        """As mergekit's YAML holds it, `scaled`: a number, or a list of conditions that ends with the value for the rest.

        A depth is a gradient, of which mergekit gives what stands in no layer the first number: so the tensors `behind` the
        last layer have conditions of their own.
        """
        last = self.depth[1]
        conditions = [(name, rounded(last * scaled(self._of(name)))) for name in behind if self.has_depth]
        conditions += [(name, self._over_layers(scaled(value))) for name, value in self.by_filter]
        rest = self._over_layers(scaled(self.value))
        if not conditions:
            return rest
        return [{"filter": name, "value": value} for name, value in conditions] + [{"value": rest}]

    def _over_layers(self, value: float) -> Any:
        return [rounded(value * end) for end in self.depth] if self.has_depth else value

    def _of(self, tensor: str) -> float:
        return next((value for name, value in self.by_filter if name in tensor), self.value)


def rounded(value: float) -> float:
    """0.3 for 0.1 · 3, which is 0.30000000000000004."""
    return float(f"{value:.12g}")
