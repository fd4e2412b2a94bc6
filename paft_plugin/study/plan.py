"""What a study runs: from a `study.yml` a `paft.yml` for each seed, and what each of its arms is in the study."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import BaseModel

from paft_plugin.errors import PaftError, raise_if_any
from paft_plugin.fusion.recipe.methods import METHODS
from paft_plugin.fusion.recipe.settings import Filter, Pair
from paft_plugin.pipeline.arms import BASE, DISJOINT, JOINT, PAFT, PARALLEL, SEQUENTIAL, SUM, Setup, resolve
from paft_plugin.pipeline.branches import PLUGIN, with_paths
from paft_plugin.pipeline.config import BranchSpec, CompareConfig, FusionConfig, PaftConfig
from paft_plugin.schema import read_yaml
from paft_plugin.search.space import make_spaces
from paft_plugin.study.config import StudyConfig, said_with_lines
from paft_plugin.study.design import SEEDS, Design, Match, StudyArm

FACTORS = (0.5, 2.0, 0.25, 4.0, 0.7, 1.4, 0.35, 2.8, 0.125, 8.0)
"""On the learning rate of the second of two trainings, in the order in which they are tried."""
AROUND: Pair = (0.25, 4.0)
"""Where a factor on what a config says is searched."""
SHORTER = (0.2, 0.4, 0.6)
"""Of a training: when it is stopped early."""
AROUND_LAMBDA = {"factors": (0.1, 1.0, 10.0), "preference_l1": (1.0,), "l2": (30.0, 300.0, 3000.0)}
"""Penalty → its strengths, as multiples of the config's own λ. Of L2: where it pulls on an entry of 10⁻³ as L1 does is 500."""
EXTRAS: Mapping[str, Mapping[str, Pair]] = {"ram": {"epsilon": (1e-6, 1e-3)}}
"""What is tuned of a method that has none of the usual settings; by ratio."""
SOBOL_SEED, DIMENSIONS = 17, 16

Content = dict[str, Any]


@dataclass(frozen=True)
class SeedRun:
    """The run of one seed."""

    seed: int
    file: Path
    """Its `paft.yml`."""
    text: str
    arms: tuple[StudyArm, ...]


@dataclass(frozen=True)
class StudyPlan:
    """A study, of which nothing has been started."""

    folder: Path
    runs: tuple[SeedRun, ...]
    design: Design


def plan_study(file: Path, studies: Mapping[int, StudyConfig]) -> StudyPlan:
    """What the study in `file` runs; nothing is written.

    Raises:
        PaftError: All that is wrong: configs of branches, a contrast that names no arm.
    """
    first = next(iter(studies.values()))
    skills, preferences = first.goals
    with said_with_lines(file):
        runs = tuple(_plan_seed(file, study, seed) for seed, study in studies.items())
        design = Design(
            description=first.description,
            seeds=tuple(studies),
            skill=skills[0],
            preference=preferences[0],
            retained=first.retained,
            primary=first.decides,
            arms=runs[0].arms,
            contrasts=first.contrasts,
        )
        raise_if_any(list(_unknown_arms(file, design)))
    return StudyPlan(first.output_dir, runs, design)


def _unknown_arms(file: Path, design: Design) -> Iterator[str]:
    for index, contrast in enumerate(design.contrasts):
        for key in ("one", "other"):
            reference = getattr(contrast, key)
            if not design.named(reference):
                yield (
                    f"{file}: contrasts.{index}.{key}: {reference}: no such arm in this study. `axolotl paft study --dry-run` "
                    "lists them; best:WAY/FORM and control:NAME/WAY choose one on validation."
                )


# --- the branches that everything is made of ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Trunk:
    """The three trainings that everything is made of: the skill without and with the penalty, and the preference."""

    setup: Setup
    skill_key: str
    preference_key: str
    """What the file calls the branches."""

    @classmethod
    def of(cls, file: Path, study: StudyConfig) -> Trunk:
        """The branches of the study in `file`.

        Raises:
            PaftError: There are others than one SFT branch with the penalty and one preference branch, to be trained.
        """
        bare = study.model_copy(
            update={
                "compare": CompareConfig.model_validate({}),
                "sequential": (),
                "arms": [BASE],
                "fusion": FusionConfig(),
            }
        )
        setup = resolve(bare, file, Path(study.base))
        keys = {role: [key for key, spec in study.fused.items() if spec.role == role] for role in ("sft", "preference")}
        problems = [
            f"{file}: branches: {len(names)} of role {role}. A study has one."
            for role, names in keys.items()
            if len(names) != 1
        ]
        raise_if_any(problems)
        trunk = cls(setup, keys["sft"][0], keys["preference"][0])
        trained = [key for key in (trunk.skill_key, trunk.preference_key) if study.fused[key].trained is not None]
        problems += [
            f"{file}: {key}: is given as `trained:`, and a study trains it anew. Give its config." for key in trained
        ]
        if not trained and not trunk.strength:
            problems.append(
                f"{file}: {trunk.skill_key}: its config names no penalty, and a study compares with and without one. Add "
                f"`plugins: [{PLUGIN}]` and paft_l1_lambda or paft_target_sparsity."
            )
        raise_if_any(problems)
        return trunk

    @property
    def sparse(self) -> str:
        """The arm of the skill's branch."""
        return self.setup.fused[self.skill_key]

    @property
    def dense(self) -> str:
        """The arm of its twin without the penalty."""
        return self.setup.twins[self.sparse]

    @property
    def preference(self) -> str:
        """The arm of the preference branch."""
        return self.setup.fused[self.preference_key]

    @cached_property
    def without_penalty(self) -> Content:
        """Overrides that make the skill's training its dense twin."""
        content = self.setup.branches[self.sparse].content
        others = self.setup.branches[self.dense].content.get("plugins")
        return {"plugins": others, **{key: None for key in content if key.startswith("paft_")}}

    @cached_property
    def strength(self) -> dict[str, float]:
        """How strong the config's own penalty is: `paft_l1_lambda`, or `paft_target_sparsity`; empty without one."""
        content = self.setup.branches[self.sparse].content
        keys = [key for key in ("paft_target_sparsity", "paft_l1_lambda") if content.get(key) is not None]
        return {key: float(content[key]) for key in keys[:1]}

    @property
    def around(self) -> float:
        """The λ that others are chosen around."""
        return float(self.setup.branches[self.sparse].content.get("paft_l1_lambda") or 1e-4)

    def number(self, arm: str, key: str) -> float:
        """A number in the axolotl config of an arm.

        Raises:
            PaftError: There is none.
        """
        branch = self.setup.branches[arm]
        try:
            return float(branch.content[key])
        except (KeyError, TypeError, ValueError):
            raise PaftError(f"{branch.where}: {key}: no number. A study varies it: set it.") from None


# --- trials of a way of combining ---------------------------------------------------------------------------------------


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


def _by_ratio(at: float, between: Pair) -> float:
    return float(f"{between[0] * (between[1] / between[0]) ** at:.3g}")


def _halving(index: int) -> float:
    """½, ¼, ¾, ⅛, ⅝ …: numbers in between, each as far from those before as can be."""
    value, part = 0.0, 0.5
    while index:
        value, index, part = value + part * (index & 1), index >> 1, part / 2
    return value


Draw = Callable[[int, Sequence[float]], Content]
"""The settings of a trial, by its number from 2 and coordinates."""


def _of_method(method: str, study: StudyConfig) -> Draw | None:
    """How a merge method is tuned; None where it has nothing to tune."""
    if method in EXTRAS:
        return lambda _number, point: {
            "extras": {
                name: _by_ratio(at, where) for at, (name, where) in zip(point, EXTRAS[method].items(), strict=False)
            }
        }
    given = study.search.methods.get(method, {}) if study.search else {}
    space = make_spaces({method: given})[method]
    return (lambda _number, point: space.propose(cast("Any", _Coordinates(point)))) if space.searched else None


def _of_alpha(number: int, _point: Sequence[float]) -> Content:
    alpha = _halving(number)
    return {"weight_sft": 1 - alpha, "weight_preference": alpha}


def _flat(settings: Mapping[str, Any]) -> dict[str, float | str]:
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


# --- one seed -----------------------------------------------------------------------------------------------------------


def _plan_seed(file: Path, study: StudyConfig, seed: int) -> SeedRun:
    there = study.output_dir / SEEDS / str(seed)
    sheet = _Sheet(file, study, Trunk.of(file, study), seed, there)
    sheet.fill()
    taken = [name for name in study.compare.branches if name in sheet.made]
    raise_if_any([f"{file}: compare.{name}: the study makes an arm of that name. Name it otherwise." for name in taken])
    header = (
        f"# Seed {seed} of the study in {os.path.relpath(file, there)}: `axolotl paft study` writes this file anew. By hand:\n"
        "#   axolotl paft run paft.yml            (--dry-run shows what it would do)\n"
    )
    text = yaml.dump(sheet.content(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return SeedRun(seed, there / "paft.yml", header + text, tuple(sheet.arms))


@dataclass
class _Sheet:
    """What goes into one seed's `paft.yml`, and what it is in the study."""

    file: Path
    study: StudyConfig
    trunk: Trunk
    seed: int
    there: Path
    """The folder of the `paft.yml`."""
    compare: Content = field(default_factory=dict)
    orders: list[list[str]] = field(default_factory=list)
    fused: Content = field(default_factory=dict)
    arms: list[StudyArm] = field(default_factory=list)

    @property
    def made(self) -> set[str]:
        """The names that the study gives."""
        return {*self.compare, *self.fused}

    @property
    def methods(self) -> list[str]:
        """The merge methods among the ways."""
        return [way for way in self.study.ways if way in METHODS]

    def fill(self) -> None:
        """Everything that the study asks for."""
        trunk, wanted = self.trunk, self.study.controls.wanted
        self.arm(BASE, group="base")
        self.arm(trunk.dense, group="branch", form="dense", of=trunk.dense)
        self.arm(trunk.sparse, group="branch", form="l1", of=trunk.sparse, settings=trunk.strength)
        self.arm(trunk.preference, group="branch")
        for name in self.study.compare.branches:
            self.arm(name, group="branch")
        sparse = self.strength_curves()
        self.sequential()
        if JOINT in self.study.ways:
            self.joint()
        for method in self.methods:
            self.fusions(method, sparse)
        if "alpha" in self.study.ways:
            self.alpha(sparse)
        if DISJOINT in self.study.ways or DISJOINT in wanted:
            self.disjoint()
        for control, settings in wanted.items():
            if control != DISJOINT:
                self.control(control, settings)
        self.density_curve()

    def arm(self, name: str, **what: Any) -> None:
        self.arms.append(StudyArm(name=name, **what))

    def fuse(self, name: str, branches: Sequence[str], method: str, settings: Mapping[str, Any]) -> None:
        """A fusion in memory."""
        self.fused[name] = {"branches": list(branches), "method": method, **settings}

    # --- trainings -----------------------------------------------------------

    def training(self, name: str, key: str, changes: Mapping[str, Any]) -> None:
        """A branch's training with other keys."""
        written = self.written(self.study.fused[key])
        self.compare[name] = {**written, "overrides": {**written.get("overrides", {}), **changes}}
        if self.study.branches == {}:
            self.compare[name].pop("role", None)  # its kind of training says it

    def strength_curves(self) -> dict[str, dict[str, float | str]]:
        """The trainings with other strengths; returns arm → λ of those that fusions are tried with, the weakest first."""
        trunk, curves = self.trunk, self.study.curves
        found: dict[str, dict[str, float | str]] = {trunk.sparse: dict(trunk.strength)}
        of_curve = {
            "paft_l1_lambda": ("l1", curves.paft_l1_lambda),
            "paft_target_sparsity": ("target", curves.paft_target_sparsity),
        }
        for key, (word, values) in of_curve.items():
            for value in values or ():
                name = trunk.sparse if trunk.strength == {key: value} else f"{word}-{value:g}"
                if name != trunk.sparse:
                    others = {each: None for each in trunk.strength if each != key}
                    self.training(name, trunk.skill_key, {**others, key: value})
                    self.arm(name, group="branch", form="l1", of=name, settings={key: value})
                if key in trunk.strength:
                    found[name] = {key: value}
                self.curve_point(key, value, name)
        if curves.paft_l1_lambda:
            self.curve_point("paft_l1_lambda", 0.0, trunk.dense)
        return dict(sorted(found.items(), key=lambda each: list(map(float, each[1].values()))))

    def curve_point(self, curve: str, x: float, skill: str) -> None:
        """A training on a curve, and what every method makes of it at its default."""
        trunk = self.trunk
        form = "dense" if skill == trunk.dense else "l1"
        self.arm(skill, group="curve", curve=curve, x=x, form=form, of=skill)
        defaults = {trunk.dense: PARALLEL, trunk.sparse: PAFT}
        for method in self.methods:
            name = f"{defaults[skill]}{method}" if skill in defaults else f"{skill}-{method}"
            if skill not in defaults:
                self.fuse(name, [skill, trunk.preference], method, self.default(method))
            self.arm(name, group="curve", curve=curve, x=x, way=method, form=form, of=skill)

    def default(self, method: str) -> Content:
        """The settings of a method that the file gives, else none: its own."""
        given = self.study.fusion.methods.get(method)
        return {} if given is None else cast("Content", self.written(given))

    def sequential(self) -> None:
        """One training after the other, with several learning rates of the second."""
        trunk = self.trunk
        there_and_back = {
            "sequential": (trunk.skill_key, trunk.preference_key, trunk.preference, {}),
            "sequential-reverse": (trunk.preference_key, trunk.skill_key, trunk.dense, trunk.without_penalty),
        }
        for way, (first, second, arm, changes) in there_and_back.items():
            if way not in self.study.ways:
                continue
            rate = trunk.number(arm, "learning_rate")
            for trial in range(1, self.study.budget + 1):
                factor, key = 1.0, second
                if trial > 1:
                    factor = _factor(trial)
                    key = f"{arm}-lr{factor:g}"
                    self.training(key, second, {**changes, "learning_rate": rate * factor})
                self.orders.append([first, key])
                usual = way == "sequential" and trial == 1
                name = SEQUENTIAL if usual else "-".join([SEQUENTIAL, first, key])
                settings = {"learning_rate": rate * factor}
                self.arm(name, group="way", way=way, form="dense", trial=trial, settings=settings)

    def joint(self) -> None:
        """One training on the rows of both, with several weights of the two losses and learning rates."""
        trunk = self.trunk
        rate = max(trunk.number(arm, "learning_rate") for arm in (trunk.dense, trunk.preference))
        weighs = trunk.setup.branches[trunk.preference].strategy in ("dpo", "ipo", "simpo")
        self.compare[JOINT] = {} if self.study.compare.joint is None else self.written(self.study.compare.joint)
        self.arm(JOINT, group="way", way=JOINT, form="dense", trial=1)
        for trial, point in enumerate(points(self.study.budget)[1:], start=2):
            own: Content = {"overrides": {"learning_rate": _by_ratio(point[0], (rate * AROUND[0], rate * AROUND[1]))}}
            if weighs:
                own = {"sft_weight": _by_ratio(point[1], AROUND), **own}
            self.compare[f"{JOINT}-{trial}"] = {"joint": own}
            settings = {key: value for key, value in own.items() if key != "overrides"} | own["overrides"]
            self.arm(f"{JOINT}-{trial}", group="way", way=JOINT, form="dense", trial=trial, settings=settings)

    def disjoint(self) -> None:
        """Branches that train modules of their own, summed with several weights."""
        trunk, own = self.trunk, self.study.compare.disjoint
        self.compare[DISJOINT] = {} if own is None else self.written(own)
        branches = [f"{DISJOINT}-{key}" for key in (trunk.skill_key, trunk.preference_key)]
        if DISJOINT in self.study.controls.wanted:
            self.arm(DISJOINT, group="control", control=DISJOINT, way=SUM, form=DISJOINT, of=branches[0])
        if DISJOINT in self.study.ways:
            self.arm(DISJOINT, group="way", way=DISJOINT, form="dense", of=branches[0], trial=1)
            self.trials(DISJOINT, "dense", branches, SUM, _of_method(SUM, self.study), {branches[0]: {}})

    # --- fusions -------------------------------------------------------------

    def fusions(self, method: str, sparse: Mapping[str, Mapping[str, float | str]]) -> None:
        """A merge method on the dense and on the sparse deltas."""
        trunk, draw = self.trunk, _of_method(method, self.study)
        for form, prefix, skill, skills in (
            ("dense", PARALLEL, trunk.dense, {trunk.dense: {}}),
            ("l1", PAFT, trunk.sparse, sparse),
        ):
            settings = {**_flat(self.default(method)), **(trunk.strength if form == "l1" else {})}
            self.arm(f"{prefix}{method}", group="way", way=method, form=form, of=skill, trial=1, settings=settings)
            self.trials(method, form, [skill, trunk.preference], method, draw, skills)

    def alpha(self, sparse: Mapping[str, Mapping[str, float | str]]) -> None:
        """Points on the straight way from the skill's branch to the preference branch, first the one in the middle."""
        trunk = self.trunk
        for form, skill, skills in (("dense", trunk.dense, {trunk.dense: {}}), ("l1", trunk.sparse, sparse)):
            name, settings = f"{form}-alpha-1", _of_alpha(1, ())
            self.fuse(name, [skill, trunk.preference], SUM, settings)
            own = {**settings, **(trunk.strength if form == "l1" else {})}
            self.arm(name, group="way", way="alpha", form=form, of=skill, trial=1, settings=own)
            self.trials("alpha", form, [skill, trunk.preference], SUM, _of_alpha, skills)

    def trials(
        self,
        way: str,
        form: str,
        branches: Sequence[str],
        method: str,
        draw: Draw | None,
        skills: Mapping[str, Mapping[str, float | str]],
    ) -> None:
        """All trials of a way after its default; `skills`: the arms of the skill that it is tried with, and their strengths."""
        names = list(skills)
        if draw is None:  # nothing to tune but the strength
            others = [name for name in names if name != branches[0]][: self.study.budget - 1]
            tried: list[tuple[str, Content]] = [(name, self.default(method)) for name in others]
        else:
            tried = [
                (names[int(point[0] * len(names))], draw(trial, point[1:]))
                for trial, point in enumerate(points(self.study.budget)[1:], start=2)
            ]
        for trial, (skill, settings) in enumerate(tried, start=2):
            name = f"{form}-{way}-{trial}"
            self.fuse(name, [skill, *branches[1:]], method, settings)
            own = {**_flat(settings), **skills[skill]}
            self.arm(name, group="way", way=way, form=form, of=skill, trial=trial, settings=own)

    def density_curve(self) -> None:
        """The methods that trim or drop, at several densities."""
        trunk = self.trunk
        for density in self.study.curves.density or ():
            for method in self.methods:
                if METHODS[method].density is None:
                    continue
                for form, prefix, skill in (("dense", PARALLEL, trunk.dense), ("l1", PAFT, trunk.sparse)):
                    own = {**self.default(method), "density": density}
                    usual = self.default(method) in ({}, {"density": density})
                    is_default = usual and self.default(method).get("density", METHODS[method].density) == density
                    name = f"{prefix}{method}" if is_default else f"{form}-{method}-density-{density:g}"
                    if not is_default:
                        self.fuse(name, [skill, trunk.preference], method, own)
                    self.arm(name, group="curve", curve="density", x=density, way=method, form=form, of=skill)

    # --- controls ------------------------------------------------------------

    def control(self, control: str, settings: Any) -> None:
        """The candidates of a control, and what every method makes of each at its default."""
        trunk, (skills, _) = self.trunk, self.study.goals
        measure = "kl_to_base" if control == "kl" else skills[0]
        match = Match(measure=measure, to=trunk.sparse)
        candidates = list(self.candidates(control, settings))
        for name, own in candidates:
            of_preference = control == "preference_l1"
            what: Content = {"group": "control", "control": control, "form": control, "settings": own}
            if of_preference:
                what |= {"of": trunk.sparse, "match": Match(measure=self.study.goals[1][0], to=trunk.preference)}
            else:
                what |= {"of": name, **({"match": match} if len(candidates) > 1 else {})}
            self.arm(name, **what)
            for method in self.methods:
                pair = [trunk.sparse, name] if of_preference else [name, trunk.preference]
                self.fuse(f"{name}-{method}", pair, method, self.default(method))
                self.arm(f"{name}-{method}", way=method, **what)

    def candidates(self, control: str, settings: Any) -> Iterator[tuple[str, dict[str, float | str]]]:
        """Write the candidates of a control; yields the arm of each, and what was set."""
        trunk = self.trunk
        if control == "early_stop":
            for steps, changes in self.shorter(settings.steps):
                self.training(name := f"early-{steps:g}", trunk.skill_key, {**trunk.without_penalty, **changes})
                yield name, changes
        elif control == "kl":
            for factor in settings.factors:
                self.compare[name := f"kl-{factor:g}"] = {"control": "scale", "of": trunk.dense, "factor": factor}
                yield name, {"factor": factor}
        elif control in AROUND_LAMBDA:
            usual = tuple(float(f"{trunk.around * factor:.3g}") for factor in AROUND_LAMBDA[control])
            for strength in settings.strengths or usual:
                name, key, changes = self.penalty(control, strength)
                self.training(name, key, changes)
                yield name, {"paft_l2_lambda" if control == "l2" else "paft_l1_lambda": strength}
        else:
            own = {"seed": self.seed} if control == "drop" else {}
            self.compare[control] = {"control": control, "of": trunk.dense, "like": trunk.sparse, **own}
            yield control, {}

    def penalty(self, control: str, strength: float) -> tuple[str, str, Content]:
        """The arm, the branch's key and the changed keys of a training with another penalty."""
        trunk = self.trunk
        none = dict.fromkeys(trunk.strength)
        if control == "l2":
            return f"l2-{strength:g}", trunk.skill_key, {**none, "paft_l2_lambda": strength}
        if control == "factors":
            none.pop("paft_l1_lambda", None)
            return (
                f"factors-{strength:g}",
                trunk.skill_key,
                {**none, "paft_l1_lambda": strength, "paft_l1_on": "factors"},
            )
        plugins = [*(trunk.setup.branches[trunk.preference].content.get("plugins") or []), PLUGIN]
        return (
            f"{trunk.preference}-l1-{strength:g}",
            trunk.preference_key,
            {"plugins": plugins, "paft_l1_lambda": strength},
        )

    def shorter(self, steps: Sequence[int] | None) -> Iterator[tuple[float, dict[str, float | str]]]:
        """How long the early-stopped trainings are, in steps, or in epochs where that is what the config says."""
        content = self.trunk.setup.branches[self.trunk.dense].content
        if steps or content.get("max_steps"):
            whole = self.trunk.number(self.trunk.dense, "max_steps") if not steps else 0.0
            for each in steps or [max(1, round(whole * share)) for share in SHORTER]:
                yield each, {"max_steps": each}
            return
        whole = self.trunk.number(self.trunk.dense, "num_epochs")
        for share in SHORTER:
            yield float(f"{whole * share:.3g}"), {"num_epochs": float(f"{whole * share:.3g}")}

    # --- the file ------------------------------------------------------------

    def content(self) -> Content:
        """What the `paft.yml` holds."""
        written = cast("Content", self.written(self.study))
        given = {
            key: value for key, value in written.get("compare", {}).items() if key not in (JOINT, SEQUENTIAL, DISJOINT)
        }
        usual = [self.trunk.skill_key, self.trunk.preference_key]
        orders = [list(order) or usual for order in self.study.orders] + self.orders
        content: Content = {**written, "output_dir": "."}
        content["compare"] = {**given, **{name: _FlowMap(value) for name, value in self.compare.items()}}
        content["sequential"] = [_FlowList(order) for order in dict.fromkeys(map(tuple, orders))]
        content["fusion"] = {
            **written.get("fusion", {}),
            "methods": {
                **written.get("fusion", {}).get("methods", {}),
                **{name: self.default(name) for name in self.methods},
            },
            "seed": self.study.fusion.seed if "seed" in self.study.fusion.model_fields_set else self.seed,
            "fused": {name: _FlowMap(value) for name, value in self.fused.items()},
        }
        content["arms"] = _FlowList(dict.fromkeys([*(self.study.arms or []), *(arm.name for arm in self.arms)]))
        if self.study.validation and self.study.evaluation and self.study.evaluation.held_out is not False:
            content["evaluation"] = {**written.get("evaluation", {}), "validation": True}
        return {key: content[key] for key in PaftConfig.model_fields if content.get(key) not in (None, {}, [])}

    def written(self, value: Any) -> Any:
        """A part of the study as it stands in a `paft.yml` in another folder: what was said, and no default."""
        if isinstance(value, BranchSpec):
            return self.written_branch(value)
        if isinstance(value, BaseModel):
            said = [
                *(name for name in type(value).model_fields if name in value.model_fields_set),
                *(value.model_extra or {}),
            ]
            named = {name: self.written(getattr(value, name)) for name in said}
            return {**named, "base": self.place(Path(value.base))} if isinstance(value, StudyConfig) else named
        if isinstance(value, Mapping):
            return {key: self.written(each) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.written(each) for each in value]
        return str(value) if isinstance(value, Filter) else self.place(value) if isinstance(value, Path) else value

    def written_branch(self, spec: BranchSpec) -> Content:
        """A branch; what its config names by paths that would lead nowhere from the other folder is named anew."""
        said = {name: getattr(spec, name) for name in type(spec).model_fields if name in spec.model_fields_set}
        here = [self.file.resolve().parent]
        if isinstance(spec.config, Path):
            own = read_yaml(spec.config, "Give an axolotl config.")
            beside = [spec.config.parent]
            lost = {
                key: with_paths(key, value, here, self.place)
                for key, value in own.items()
                if key not in spec.overrides
                and with_paths(key, value, [*here, *beside]) != with_paths(key, value, [self.there, *beside])
            }
            said["overrides"] = {**self.relocated(spec.overrides), **lost}
        elif spec.config is not None:
            said |= {"config": self.relocated(spec.config), "overrides": self.relocated(spec.overrides)}
        if not said.get("overrides"):
            said.pop("overrides", None)
        return {key: self.place(value) if isinstance(value, Path) else value for key, value in said.items()}

    def relocated(self, content: Mapping[str, Any]) -> Content:
        """An axolotl config whose paths lead on from the other folder."""
        return {key: with_paths(key, value, [self.file.resolve().parent], self.place) for key, value in content.items()}

    def place(self, path: Path) -> str:
        """A path as it is seen from the other folder; a hub name as it is."""
        return os.path.relpath(path, self.there) if path.is_absolute() else str(path)


def _factor(trial: int) -> float:
    """On the learning rate, in a trial from the second on."""
    return (
        FACTORS[trial - 2] if trial - 2 < len(FACTORS) else _by_ratio(points(trial)[-1][0], (FACTORS[-2], FACTORS[-1]))
    )


class _FlowMap(dict):
    """A mapping on one line."""


class _FlowList(list):
    """A list on one line."""


class _Dumper(yaml.SafeDumper):
    """YAML as people write it: nothing by reference."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(
    _FlowMap, lambda dumper, value: dumper.represent_mapping("tag:yaml.org,2002:map", value.items(), True)
)
_Dumper.add_representer(
    _FlowList, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, True)
)
_Dumper.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, "|" if "\n" in text else None)
)
