"""What a study runs: from a `study.yml` a `paft.yml` for each seed, and what each of its arms is in the study."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from paft_plugin.errors import PaftError, did_you_mean, raise_if_any, some
from paft_plugin.evaluation.held_out_rows import KL
from paft_plugin.fusion.recipe.methods import METHODS
from paft_plugin.pipeline.arms import BASE, DISJOINT, JOINT, PAFT, PARALLEL, SEQUENTIAL, SUM, Setup, resolve
from paft_plugin.pipeline.branches import BOUND, PLUGIN, REFERENCE, is_plugin
from paft_plugin.pipeline.config import CompareConfig, FusionConfig, PaftConfig
from paft_plugin.study.config import STRENGTHS, StudyConfig, said_with_lines
from paft_plugin.study.design import SEEDS, Design, Match, StudyArm
from paft_plugin.study.planning.seed_file import Content, FlowList, FlowMap, SeedFile
from paft_plugin.study.planning.tuning import AROUND, Draw, by_ratio, flat, of_alpha, of_method, points, rate_factor

SHORTER = (0.2, 0.4, 0.6)
"""Of a training: when it is stopped early."""
AROUND_LAMBDA = {"factors": (0.1, 1.0, 10.0), "preference_l1": (1.0,), "l2": (30.0, 300.0, 3000.0)}
"""Penalty → its strengths, as multiples of the config's own λ. Of L2: where it pulls on an entry of 10⁻³ as L1 does is 500."""


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
        raise_if_any([f"{file}: {problem}" for problem in _asked_differently(studies)])
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
            margins=first.evaluation.margin if first.evaluation else {},
        )
        raise_if_any([*_copies(file, studies), *_different_arms(file, runs), *_unknown_arms(file, design)])
    return StudyPlan(first.output_dir, runs, design)


def _asked_differently(studies: Mapping[int, StudyConfig]) -> Iterator[str]:
    """What must be the same for all seeds, and has $seed in it."""
    first, *others = studies.values()
    for key in ("output_dir", "ways", "budget", "contrasts", "retained", "primary"):
        if any(getattr(other, key) != getattr(first, key) for other in others):
            yield f"{key}: is another for each seed. Leave $seed out of it: of all seeds it is the same."
    for key in ("skill", "preference", "margin"):
        if any(getattr(each.evaluation, key, None) != getattr(first.evaluation, key, None) for each in others):
            yield f"evaluation.{key}: is another for each seed. Leave $seed out of it: of all seeds it is the same."


def _different_arms(file: Path, runs: Sequence[SeedRun]) -> Iterator[str]:
    """Arms that are not the same in every seed: their mean would be of two things."""
    first, *others = runs
    for run in others:
        if different := [
            one.name for one, other in itertools.zip_longest(first.arms, run.arms) if one and one != other
        ]:
            yield (
                f"{file}: {some(different)}: with seed {run.seed} not what they are with seed {first.seed}. An arm has the same "
                "strength and settings in all seeds."
            )


def _copies(file: Path, studies: Mapping[int, StudyConfig]) -> Iterator[str]:
    """Branches that two seeds train alike: the second is a copy, and intervals over seeds would take it for a training more."""
    first = next(iter(studies.values()))
    for key in first.fused:
        specs = [study.fused.get(key) for study in studies.values()]
        if any(one == other for one, other in itertools.combinations(specs, 2)):
            place = f"branches.{key}" if first.branches else key
            yield (
                f"{file}: {place}: is the same training for two seeds. Give it `overrides: {{seed: $seed}}`, or something else "
                "with $seed in it."
            )


def _unknown_arms(file: Path, design: Design) -> Iterator[str]:
    for index, contrast in enumerate(design.contrasts):
        for key in ("one", "other"):
            reference = getattr(contrast, key)
            if not design.named(reference):
                close = did_you_mean(reference, [*(arm.name for arm in design.arms), *design.choices], otherwise="")
                yield (f"{file}: contrasts.{index}.{key}: {reference}: no such arm in this study. {close or SUCH_ARMS}")


SUCH_ARMS = (
    "Without the contrast, `axolotl paft study --dry-run` lists them; best:WAY/FORM and control:NAME/WAY choose one on "
    "validation."
)


# --- the branches that everything is made of ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Trunk:
    """The trainings that everything is made of: the skill without and, if the file has one, with the penalty; the preference."""

    setup: Setup
    skill_key: str
    preference_key: str
    """What the file calls the branches."""

    @classmethod
    def of(cls, file: Path, study: StudyConfig) -> Trunk:
        """The branches of the study in `file`.

        Raises:
            PaftError: There are others than one SFT branch and one preference branch, to be trained; or something is asked
                of a penalty, and there is none.
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
            problems += [f"{file}: {problem}" for problem in trunk.problems_without_strength(study)]
        twinless = sorted({JOINT, "sequential-reverse"} & set(study.ways)) if BOUND in trunk.strength else []
        problems += [
            f"{file}: ways: {way}: with {BOUND} it would need a training without the penalty that is like it in all else, and "
            f"there is none. Leave {way} out, or give paft_l1_lambda or paft_target_sparsity."
            for way in twinless
        ]
        raise_if_any(problems)
        return trunk

    def problems_without_strength(self, study: StudyConfig) -> list[str]:
        """What is wrong where the config says of no penalty how strong it is."""
        strengths = ", ".join(STRENGTHS)
        if self.sparse != self.dense:
            return [
                f"{self.skill_key}: its penalty has a strength that a study cannot vary. Give it one of {strengths}, or none."
            ]
        return [
            f"{asked}: asks what a penalty does, and {self.skill_key}'s config has none. Leave it out, or add "
            f"`plugins: [{PLUGIN}]` and one of {strengths}."
            for asked in _of_a_penalty(study)
        ]

    @property
    def sparse(self) -> str:
        """The arm of the skill's branch, as its config says."""
        return self.setup.fused[self.skill_key]

    @property
    def dense(self) -> str:
        """The arm of its twin without the penalty; where there is none, the branch's own."""
        return self.setup.twins.get(self.sparse, self.sparse)

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
        """How strong the config's own penalty is, by one of `STRENGTHS`; empty without one."""
        content = self.setup.branches[self.sparse].content
        return {key: float(content[key]) for key in self.own_penalty[:1]}

    @property
    def preference_plugins(self) -> Sequence[str]:
        """The plugins of the preference's training, and so of a joint one."""
        return self.setup.branches[self.preference].content.get("plugins") or ()

    @cached_property
    def kind_of_penalty(self) -> Content:
        """What else than its strength the config says of its penalty: where it falls, and how."""
        content = self.setup.branches[self.sparse].content
        apart = (*STRENGTHS, REFERENCE)
        return {key: value for key, value in content.items() if key.startswith("paft_") and key not in apart}

    @property
    def own_penalty(self) -> list[str]:
        """The keys by which the config says how strong its penalty is."""
        return [key for key in STRENGTHS if self.setup.branches[self.sparse].content.get(key) is not None]

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


def _of_a_penalty(study: StudyConfig) -> list[str]:
    """What a study asks for that makes no sense without a penalty."""
    controls = [f"controls.{name}" for name in study.controls.wanted if name != DISJOINT]
    return [*controls, *(f"curves.{key}" for key in STRENGTHS if getattr(study.curves, key) is not None)]


@dataclass(frozen=True)
class Form:
    """What the skill's delta is in a way of combining."""

    name: str
    """`dense` or `l1`."""
    prefix: str
    """Of the arms that fuse it at a method's default."""
    skill: str
    """Its arm at the config's own strength."""
    strengths: Mapping[str, Mapping[str, float | str]]
    """The arms of the skill that are tried → how strong their penalties are; of the dense one nothing."""

    def drawn(self, at: float) -> str:
        """The arm of the skill at a coordinate from 0 to 1."""
        return list(self.strengths)[int(at * len(self.strengths))]


def with_plugin(plugins: Sequence[str]) -> list[str]:
    """The plugins of a training, and the one that adds the penalty."""
    return [*(plugin for plugin in plugins if not is_plugin(plugin)), PLUGIN]


# --- one seed -----------------------------------------------------------------------------------------------------------


def _plan_seed(file: Path, study: StudyConfig, seed: int) -> SeedRun:
    written = SeedFile(file, study.output_dir / SEEDS / str(seed))
    sheet = _Sheet(study, Trunk.of(file, study), seed, written)
    sheet.fill()
    places = {"compare": study.compare.named, "fusion.fused": study.fusion.fused}
    taken = [f"{place}.{name}" for place, names in places.items() for name in names if name in sheet.made]
    raise_if_any([f"{file}: {place}: the study makes an arm of that name. Name it otherwise." for place in taken])
    return SeedRun(seed, written.folder / "paft.yml", written.text(seed, sheet.content()), tuple(sheet.arms))


@dataclass
class _Sheet:
    """What goes into one seed's `paft.yml`, and what it is in the study."""

    study: StudyConfig
    trunk: Trunk
    seed: int
    file: SeedFile
    compare: Content = field(default_factory=dict)
    orders: list[list[str]] = field(default_factory=list)
    fused: Content = field(default_factory=dict)
    arms: list[StudyArm] = field(default_factory=list)

    @property
    def made(self) -> set[str]:
        """The names that the study gives, but for baselines that are called by a word."""
        return {*self.compare, *self.fused} - {JOINT, DISJOINT}

    @property
    def methods(self) -> list[str]:
        """The merge methods among the ways."""
        return [way for way in self.study.ways if way in METHODS]

    def fill(self) -> None:
        """Everything that the study asks for."""
        trunk, wanted = self.trunk, self.study.controls.wanted
        self.arm(BASE, group="base")
        self.arm(trunk.dense, group="branch", form="dense", of=trunk.dense)
        if trunk.strength:
            self.arm(trunk.sparse, group="branch", form="l1", of=trunk.sparse, settings=trunk.strength)
        self.arm(trunk.preference, group="branch")
        for name in (*self.study.compare.branches, *self.study.compare.controls):
            self.arm(name, group="branch")
        forms = [Form("dense", PARALLEL, trunk.dense, {trunk.dense: {}})]
        if trunk.strength:
            forms.append(Form("l1", PAFT, trunk.sparse, self.strength_curves()))
        for form in forms:
            self.sequential(form)
            if JOINT in self.study.ways:
                self.joint(form)
        for method in self.methods:
            for form in forms:
                self.fusions(method, form)
        if "alpha" in self.study.ways:
            for form in forms:
                self.alpha(form)
        if DISJOINT in self.study.ways or DISJOINT in wanted:
            self.disjoint()
        for control, settings in wanted.items():
            if control != DISJOINT:
                self.control(control, settings)
        self.density_curve(forms)
        self.given()

    def given(self) -> None:
        """What the file compares and fuses beside the ways: each a way of its own, which is not tuned."""
        study, there = self.study, {arm.name for arm in self.arms}
        orders = map(self.order_name, self.given_orders)
        words = [*study.compare.joints, *([DISJOINT] if study.compare.disjoint is not None else [])]
        for name in dict.fromkeys([*words, *orders, *study.fusion.fused]):
            if name not in there:
                self.arm(name, group="way", way=name, form="given" if name in study.fusion.fused else "dense", trial=1)

    @property
    def usual(self) -> list[str]:
        """The order of trainings that is meant where none is named."""
        return [self.trunk.skill_key, self.trunk.preference_key]

    def order_name(self, order: list[str]) -> str:
        """The arm of an order, as a run calls it."""
        return SEQUENTIAL if order == self.usual else "-".join([SEQUENTIAL, *order])

    @property
    def given_orders(self) -> list[list[str]]:
        """The orders of trainings that the file names itself."""
        return [list(order) or self.usual for order in self.study.orders]

    def arm(self, name: str, **what: Any) -> None:
        self.arms.append(StudyArm(name=name, **what))

    def fuse(self, name: str, branches: Sequence[str], method: str, settings: Mapping[str, Any]) -> None:
        """A fusion in memory."""
        self.fused[name] = {"branches": list(branches), "method": method, **settings}

    # --- trainings -----------------------------------------------------------

    def training(self, name: str, key: str, changes: Mapping[str, Any]) -> None:
        """A branch's training with other keys."""
        written = self.file.written(self.study.fused[key])
        self.compare[name] = {**written, "overrides": {**written.get("overrides", {}), **changes}}
        if self.study.branches == {}:
            self.compare[name].pop("role", None)  # its kind of training says it

    def strength_curves(self) -> dict[str, dict[str, float | str]]:
        """The trainings with other strengths; returns arm → λ of those that fusions are tried with, the weakest first."""
        trunk, curves = self.trunk, self.study.curves
        found: dict[str, dict[str, float | str]] = {trunk.sparse: dict(trunk.strength)}
        for key, word in reversed(STRENGTHS.items()):
            for value in getattr(curves, key) or ():
                name = trunk.sparse if trunk.strength == {key: value} else f"{word}-{value:g}"
                if name != trunk.sparse:
                    others = dict.fromkeys(each for each in trunk.own_penalty if each != key)
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
        return {} if given is None else cast("Content", self.file.written(given))

    def sequential(self, form: Form) -> None:
        """One training after the other, with several learning rates of the second."""
        trunk = self.trunk
        for way, second in (("sequential", trunk.preference), ("sequential-reverse", form.skill)):
            if way not in self.study.ways:
                continue
            rate = trunk.number(second, "learning_rate")
            for trial, point in enumerate(points(self.study.budget), start=1):
                factor = 1.0 if trial == 1 else rate_factor(trial)
                skill = form.skill if trial == 1 else form.drawn(point[0])
                order = self.order(second, skill, factor)
                self.orders.append(order)
                settings = {"learning_rate": rate * factor, **form.strengths[skill]}
                self.arm(self.order_name(order), group="way", way=way, form=form.name, trial=trial, settings=settings)

    def order(self, second: str, skill: str, factor: float) -> list[str]:
        """An order of trainings that ends with the one of the arm `second`, its learning rate times `factor`.

        The training with the penalty goes by its arm, which is no key of the file.
        """
        trunk = self.trunk
        keys = {trunk.dense: trunk.skill_key, trunk.preference: trunk.preference_key}
        if second == trunk.preference:
            last, branch, changes = second, trunk.preference_key, {}
        else:
            last, branch, changes = skill, trunk.skill_key, self.changes_of(skill)
        key = keys.get(last, last)
        if factor != 1:
            key = f"{last}-lr{factor:g}"
            self.training(key, branch, {**changes, "learning_rate": trunk.number(second, "learning_rate") * factor})
        return [keys.get(skill, skill), key] if second == trunk.preference else [trunk.preference_key, key]

    def changes_of(self, skill: str) -> Content:
        """The changes of the skill's config that make it the training of an arm."""
        if skill == self.trunk.dense:
            return self.trunk.without_penalty
        return dict(self.compare.get(skill, {}).get("overrides", {}))

    def joint(self, form: Form) -> None:
        """One training on the rows of both, with several weights of the two losses and learning rates."""
        trunk = self.trunk
        rate = max(trunk.number(arm, "learning_rate") for arm in (trunk.dense, trunk.preference))
        weighs = trunk.setup.branches[trunk.preference].strategy in ("dpo", "ipo", "simpo")
        given = {} if self.study.compare.joint is None else self.file.written(self.study.compare.joint)
        for trial, point in enumerate(points(self.study.budget), start=1):
            own: Content = {**given, "overrides": dict(given.get("overrides", {}))}
            settings: Content = {}
            skill = form.skill if trial == 1 else form.drawn(point[2])
            if trial > 1:
                settings["learning_rate"] = by_ratio(point[0], (rate * AROUND[0], rate * AROUND[1]))
                own["overrides"] |= settings
            if trial > 1 and weighs:
                own["sft_weight"] = settings["sft_weight"] = by_ratio(point[1], AROUND)
            strength = form.strengths[skill]
            if strength:
                plugins = own["overrides"].get("plugins") or trunk.preference_plugins
                own["overrides"] |= {"plugins": with_plugin(plugins), **trunk.kind_of_penalty, **strength}
            name = "-".join([JOINT, *([form.name] if strength else []), *([str(trial)] if trial > 1 else [])])
            own = {key: value for key, value in own.items() if value != {}}
            self.compare[name] = own if name == JOINT else {"joint": own}
            self.arm(name, group="way", way=JOINT, form=form.name, trial=trial, settings={**settings, **strength})

    def disjoint(self) -> None:
        """Branches that train modules of their own, summed with several weights."""
        trunk, own = self.trunk, self.study.compare.disjoint
        self.compare[DISJOINT] = {} if own is None else self.file.written(own)
        branches = [f"{DISJOINT}-{key}" for key in (trunk.skill_key, trunk.preference_key)]
        if DISJOINT in self.study.controls.wanted:
            self.arm(DISJOINT, group="control", control=DISJOINT, way=SUM, form=DISJOINT, of=branches[0])
        if DISJOINT in self.study.ways:
            self.arm(DISJOINT, group="way", way=DISJOINT, form="dense", of=branches[0], trial=1)
            self.trials(DISJOINT, "dense", branches, SUM, of_method(SUM, self.study), {branches[0]: {}})

    # --- fusions -------------------------------------------------------------

    def fusions(self, method: str, form: Form) -> None:
        """A merge method on the deltas of a form."""
        settings = {**flat(self.default(method)), **form.strengths[form.skill]}
        name = f"{form.prefix}{method}"
        self.arm(name, group="way", way=method, form=form.name, of=form.skill, trial=1, settings=settings)
        branches, draw = [form.skill, self.trunk.preference], of_method(method, self.study)
        self.trials(method, form.name, branches, method, draw, form.strengths)

    def alpha(self, form: Form) -> None:
        """Points on the straight way from the skill's branch to the preference branch, first the one in the middle."""
        name, settings, branches = f"{form.name}-alpha-1", of_alpha(1, ()), [form.skill, self.trunk.preference]
        self.fuse(name, branches, SUM, settings)
        own = {**settings, **form.strengths[form.skill]}
        self.arm(name, group="way", way="alpha", form=form.name, of=form.skill, trial=1, settings=own)
        self.trials("alpha", form.name, branches, SUM, of_alpha, form.strengths)

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
            own = {**flat(settings), **skills[skill]}
            self.arm(name, group="way", way=way, form=form, of=skill, trial=trial, settings=own)

    def density_curve(self, forms: Sequence[Form]) -> None:
        """The methods that trim or drop, at several densities."""
        for density in self.study.curves.density or ():
            for method in self.methods:
                if METHODS[method].density is None:
                    continue
                for form in forms:
                    own = {**self.default(method), "density": density}
                    usual = self.default(method) in ({}, {"density": density})
                    is_default = usual and self.default(method).get("density", METHODS[method].density) == density
                    name = f"{form.prefix}{method}" if is_default else f"{form.name}-{method}-density-{density:g}"
                    if not is_default:
                        self.fuse(name, [form.skill, self.trunk.preference], method, own)
                    what = {"way": method, "form": form.name, "of": form.skill}
                    self.arm(name, group="curve", curve="density", x=density, **what)

    # --- controls ------------------------------------------------------------

    def control(self, control: str, settings: Any) -> None:
        """The candidates of a control, and what every method makes of each at its default."""
        trunk, (skills, _) = self.trunk, self.study.goals
        measure = KL if control == "kl" else skills[0]
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
        none: Content = dict.fromkeys(trunk.own_penalty)
        if control == "l2":
            return f"l2-{strength:g}", trunk.skill_key, {**none, "paft_l2_lambda": strength}
        if control == "factors":
            none.pop("paft_l1_lambda", None)
            return (
                f"factors-{strength:g}",
                trunk.skill_key,
                {**none, "paft_l1_lambda": strength, "paft_l1_on": "factors"},
            )
        changes = {"plugins": with_plugin(trunk.preference_plugins), "paft_l1_lambda": strength}
        return f"{trunk.preference}-l1-{strength:g}", trunk.preference_key, changes

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
        written = cast("Content", self.file.written(self.study))
        given = {key: value for key, value in written.get("compare", {}).items() if key != SEQUENTIAL}
        orders = [*self.given_orders, *self.orders]
        content: Content = {**written, "output_dir": "."}
        content["compare"] = {**given, **{name: FlowMap(value) for name, value in self.compare.items()}}
        content["sequential"] = [FlowList(order) for order in dict.fromkeys(map(tuple, orders))]
        content["fusion"] = {
            **written.get("fusion", {}),
            "methods": {
                **written.get("fusion", {}).get("methods", {}),
                **{name: self.default(name) for name in self.methods},
            },
            "seed": self.study.fusion.seed if "seed" in self.study.fusion.model_fields_set else self.seed,
            "fused": {
                **written.get("fusion", {}).get("fused", {}),
                **{name: FlowMap(value) for name, value in self.fused.items()},
            },
        }
        content["arms"] = FlowList(dict.fromkeys(arm.name for arm in self.arms))
        if self.study.validation and self.study.evaluation and self.study.evaluation.held_out is not False:
            content["evaluation"] = {**written.get("evaluation", {}), "validation": True}
        return {key: content[key] for key in PaftConfig.model_fields if content.get(key) not in (None, {}, [])}
