"""What a run is made of: the branches of a `paft.yml`, the arms that are wanted of them, and where everything lies.

Here, and only here, arms get their names; everybody else reads their fields.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from shlex import quote

from paft_plugin.errors import PaftError, collecting, raise_if_any
from paft_plugin.evaluation.arms import Arm, Kind, Role
from paft_plugin.evaluation.task_code import tasks_in
from paft_plugin.files import seen_from
from paft_plugin.fusion.recipe.render import RecipeBranch
from paft_plugin.fusion.recipe.setting_problems import number_problems, setting_problems
from paft_plugin.fusion.recipe.settings import ROLES, BranchName
from paft_plugin.pipeline.baselines import (
    OF_ROLE,
    control_of,
    joint_training,
    linear_modules,
    order_problems,
    own_modules,
    training_only,
)
from paft_plugin.pipeline.branches import BOUND, REFERENCE, Branch, check_strategy, read_branch, without_penalty
from paft_plugin.pipeline.config import ALPHA, FusedConfig, PaftConfig, read_config
from paft_plugin.pipeline.hub import base_folder, with_folders
from paft_plugin.runner.devices import find_devices
from paft_plugin.schema import suggestion
from paft_plugin.search.config import SearchConfig, SearchRequest

BASE, JOINT, SEQUENTIAL, DISJOINT = "base", "joint", "sequential", "disjoint"
PAFT, PARALLEL, WITHOUT = "paft-", "parallel-", "without-"
"""How arms begin that fuse all branches, those with a penalty as they are or their dense twins, and all branches but one."""
SFT, PREFERENCE = "sft", "preference"
"""The short form's two branches. The first is taken for penalised if it is trained already; the second's arm is called by its
strategy."""
SPARSE = "-l1"
"""Ends the arm of a penalised branch, whose dense twin is called as the branch is."""
SUM = "task_arithmetic"
"""The merge method that adds deltas as they are, at its default weights."""
BRANCHES, MODELS = Path("branches"), Path("models")
"""Where trainings and merged models go, below the run's folder."""


@dataclass(frozen=True)
class Setup:
    """What a run is made of; nothing of it has been started."""

    file: Path
    """The `paft.yml`."""
    config: PaftConfig
    base: Path
    """Folder of the base model."""
    branches: Mapping[str, Branch]
    """Every branch that could be wanted, by the name of its arm."""
    fused: Mapping[str, str]
    """Branch → its arm, of those that are fused, in the file's order."""
    twins: Mapping[str, str]
    """Arm of a penalised branch → that of its dense twin, as far as there can be one."""
    arms: tuple[Arm, ...] = ()
    """The arms to score, in the order of the table."""

    @property
    def run_dir(self) -> Path:
        return self.config.output_dir

    @cached_property
    def on_cpu(self) -> bool:
        """Whether its trainings run on this machine, and it has no GPU for them; looked up once."""
        executor = self.config.executor
        if executor.kind != "local":
            return False
        return not (find_devices() if executor.devices == "auto" else executor.devices)

    @property
    def needed(self) -> list[Branch]:
        """The branches that the arms are made from, those that are fused first."""
        wanted = {name for arm in self.arms for name in arm.branches}
        for name, control in reversed(list(self.config.compare.controls.items())):
            wanted |= set(control.sources) if name in wanted else set()
        wanted |= {twin for name in wanted if (twin := self.reference_of(self.branches[name])) is not None}
        order = dict.fromkeys([*self.fused.values(), *self.branches])
        return [self.branches[name] for name in order if name in wanted]

    @property
    def trainings(self) -> list[Branch]:
        """Those of the needed branches that the run trains itself."""
        return [branch for branch in self.needed if branch.trained is None and branch.control is None]

    @property
    def dense(self) -> list[str] | None:
        """The arms of all fused branches without their penalties; None if one cannot be had."""
        arms = [self.twins.get(name, name) for name in self.fused.values()]
        return None if any(self.is_penalised(name) for name in arms) else arms

    def is_penalised(self, name: str) -> bool:
        """Whether the branch of that arm is trained with a penalty, or taken for one that was."""
        return _is_penalised(self.branches[name], SFT if name == self.fused.get(SFT) else name)

    def key(self, name: str) -> str:
        """What the file calls the branch that an arm, the dense twin of one, or a baseline's form of one is."""
        name = next(iter(self.branches[name].made_of), name)
        keys = {arm: key for key, arm in self.fused.items()}
        keys |= {twin: keys[sparse] for sparse, twin in self.twins.items()}
        return keys.get(name, name)

    def of_role(self, role: Role) -> list[str]:
        """The arms of the fused branches of a role."""
        return [name for name in self.fused.values() if self.branches[name].role == role]

    @property
    def continued(self) -> list[Branch]:
        """The trainings that the sequential baselines add."""
        orders = [arm.order for arm in self.of_kind("sequential")]
        links = dict.fromkeys(order[:end] for order in orders for end in range(2, len(order) + 1))
        return [self.branches[link[-1]] for link in links]

    def reference_of(self, branch: Branch) -> str | None:
        """The branch of this run that the loss of another one is compared with while that trains."""
        folder = branch.content.get(REFERENCE)
        return next((name for name in self.branches if folder == str(self.run_dir / BRANCHES / name)), None)

    def sequential_name(self, order: Sequence[str]) -> str:
        """What is trained in this order of arms: SFT before preferences, as the file has them, needs no more words."""
        words = [name if name in self.twins else self.key(name) for name in order]
        return SEQUENTIAL if tuple(order) == _in_arms(self, ()) else "-".join([SEQUENTIAL, *words])

    @property
    def base_arm(self) -> Arm:
        """The base model as an arm, whether it is in the table or not."""
        return Arm(name=BASE, kind="base", model=seen_from(self.run_dir, self.base))

    def of_kind(self, kind: Kind) -> list[Arm]:
        """Its arms of one kind."""
        return [arm for arm in self.arms if arm.kind == kind]

    @property
    def remote(self) -> list[str]:
        """What the run needs from a hub: hub names, or lm-eval's own tasks."""
        evaluation = self.config.evaluation
        sources = dict.fromkeys(name for branch in self.needed for name in branch.made_of or (branch.name,))
        return [
            *([self.config.base] if self.config.base_is_remote else []),
            *(str(branch.trained) for branch in self.needed if branch.spec.is_remote),
            *(name for branch in sources for name in self.branches[branch].remote_data()),
            *(sorted(evaluation.by_task.keys() - tasks_in(evaluation.tasks)) if evaluation else ()),
        ]

    def branch_folder(self, name: str) -> Path:
        """Where a branch lies once it is trained."""
        return self.branches[name].trained or self.run_dir / BRANCHES / name

    def model(self, arm: Arm) -> Path:
        """Where an arm's model or adapter lies."""
        return self.run_dir / arm.model


def open_setup(file: Path, arms: Sequence[str] = (), sequential: bool = False, *, download: bool = False) -> Setup:
    """Read a `paft.yml` and everything that it names; a base on the hub is downloaded if that is allowed.

    `arms` stand instead of the file's own and may be patterns such as `paft-*`; `sequential`: that baseline is wanted, too.

    Raises:
        PaftError: All that is wrong; before a long download all that can be known without it.
    """
    return open_config(read_config(file), file, arms, sequential, download=download)


def open_config(
    config: PaftConfig, file: Path, arms: Sequence[str] = (), sequential: bool = False, *, download: bool = False
) -> Setup:
    """The same for what `file` holds, or will hold."""
    problems: list[str] = []
    base = Path(config.base)
    with collecting(problems):
        resolve(config, file, base, arms, sequential)
    if not (problems and config.base_is_remote):
        with collecting(problems):
            base = base_folder(config, download)
            config = with_folders(config, download)
    raise_if_any(problems)
    return resolve(config, file, base, arms, sequential)


def resolve(config: PaftConfig, file: Path, base: Path, arms: Sequence[str] = (), sequential: bool = False) -> Setup:
    """What `config`, read from `file`, wants, with its base in the folder `base`; see `open_setup`.

    Raises:
        PaftError: All that is wrong: configs that cannot be read, arms that there cannot be.
    """
    setup = _read_branches(config, file, base)
    return replace(setup, arms=_wanted(setup, arms, sequential))


def _read_branches(config: PaftConfig, file: Path, base: Path) -> Setup:
    """Every branch, in the order of the table; no arms yet."""
    specs = {key if config.branches == {} else f"branches.{key}": spec for key, spec in config.fused.items()}
    specs |= {f"compare.{name}": spec for name, spec in config.compare.branches.items()}
    fused: dict[str, str] = {}
    found: dict[str, Branch] = {}
    problems: list[str] = []
    for place, spec in specs.items():
        key = place.partition(".")[2] or place
        try:
            branch = read_branch(key, spec, file.resolve().parent)
            if not place.startswith("compare."):
                branch = replace(branch, name=_arm_of(branch))
                fused[key] = branch.name
            if branch.name in found or _is_reserved(branch.name):
                raise PaftError("an arm of the run is called so. Name it otherwise.")
            found[branch.name] = branch
        except PaftError as error:
            problems += [f"{file}: {place}: {problem}" for problem in error.problems]
    raise_if_any(problems)
    branches, twins = _with_twins(fused, found)
    branches = {name: _with_reference(branch, branches, config.output_dir) for name, branch in branches.items()}
    setup = Setup(file, config, base, branches, fused, twins)
    setup = replace(setup, branches={**branches, **_joint_branches(setup), **_disjoint_branches(setup)})
    return replace(setup, branches={**setup.branches, **_controls(setup)})


def _with_reference(branch: Branch, branches: Mapping[str, Branch], run_dir: Path) -> Branch:
    """A branch whose loss is bounded, with the same training without the penalty as what its loss is compared with."""
    if BOUND not in branch.content or REFERENCE in branch.content:
        return branch
    dense = without_penalty(branch, branch.name).content
    twin = next((name for name, other in branches.items() if other.trained is None and other.content == dense), None)
    if twin is None:
        return branch  # which the plugin refuses, by the name of the key
    return replace(branch, content={**branch.content, REFERENCE: str(run_dir / BRANCHES / twin)})


def _joint_branches(setup: Setup) -> dict[str, Branch]:
    """The trainings on the rows of all branches, by the names of their arms; none unless they are wanted."""
    branches = [setup.branches[name] for name in setup.fused.values()]
    found: dict[str, Branch] = {}
    problems: list[str] = []
    for name, joint in setup.config.compare.joints.items():
        where = f"{setup.file}: compare.{name}"
        try:
            raise_if_any(_without_config(setup, where))
            if name in setup.branches or (name != JOINT and _is_reserved(name)):
                raise PaftError(f"{where}: an arm of the run is called so. Name it otherwise.")
            # For messages: its settings are those of that key, too.
            found[name] = replace(joint_training(name, branches, joint.sft_weight, joint.overrides), source=Path(where))
        except PaftError as error:
            problems += [said if said.startswith(where) else f"{where}: {said}" for said in error.problems]
    raise_if_any(problems)
    return found


def _controls(setup: Setup) -> dict[str, Branch]:
    """What is made of trained deltas, by the names of its arms.

    Raises:
        PaftError: It is of no branch, or of a penalised one: all such mistakes.
    """
    found: dict[str, Branch] = {}
    problems: list[str] = []
    for name, spec in setup.config.compare.controls.items():
        where = f"{setup.file}: compare.{name}"
        # Only what stands above it, so that nothing can be made of itself.
        known = {key: each for key, each in {**setup.branches, **found}.items() if not each.made_of}
        unknown = [
            f"{where}.{key}: {source}: no branch, and no control above this one. {suggestion(source, list(known))}"
            for key, source in zip(("of", "like"), spec.sources, strict=False)
            if source not in known
        ]
        problems += unknown
        if name in known or _is_reserved(name):
            problems.append(f"{where}: an arm of the run is called so. Name it otherwise.")
        if spec.of in known and known[spec.of].penalised:
            problems.append(
                f"{where}.of: {spec.of} is trained with the penalty, and a control is made of a delta without one. "
                f"Name {setup.twins.get(spec.of, 'its dense twin')}."
            )
        if not unknown:
            found[name] = control_of(name, spec, known[spec.of])
    raise_if_any(problems)
    return found


def _without_config(setup: Setup, where: str) -> list[str]:
    """A problem for each fused branch that this run cannot train."""
    word = where.rpartition(".")[2]
    return [
        f"{where}: needs the axolotl config of {key}, which is given as `trained:`. Give its config, or leave {word} out."
        for key, name in setup.fused.items()
        if setup.branches[name].trained is not None
    ]


def _disjoint_branches(setup: Setup) -> dict[str, Branch]:
    """The trainings of modules of their own, by the names of their arms; none unless they are wanted."""
    disjoint = setup.config.compare.disjoint
    if disjoint is None or not setup.base.is_dir():  # a base that is still on the hub
        return {}
    where = f"{setup.file}: compare.{DISJOINT}"
    fused = {key: setup.branches[name] for key, name in setup.fused.items()}
    strange = [name for name in disjoint.modules if name not in fused]
    raise_if_any([f"{where}.{name}: no such branch. {suggestion(name, list(fused))}" for name in strange])
    raise_if_any(_without_config(setup, where))
    wanted = {key: disjoint.modules.get(key, [OF_ROLE[str(branch.role)]]) for key, branch in fused.items()}
    try:
        modules = own_modules(wanted, linear_modules(setup.base))
    except PaftError as error:
        raise PaftError([f"{where}.{problem}" for problem in error.problems]) from None
    return {f"{DISJOINT}-{key}": training_only(fused[key], f"{DISJOINT}-{key}", own) for key, own in modules.items()}


def _arm_of(branch: Branch) -> str:
    """What the arm of a branch is called, which has the name that the file gives it.

    Raises:
        PaftError: A preference branch is trained on something else.
    """
    check_strategy(branch)
    return f"{_dense_arm_of(branch)}{SPARSE}" if _is_penalised(branch, branch.name) else _dense_arm_of(branch)


def _is_penalised(branch: Branch, key: str) -> bool:
    """Whether a branch that the file calls `key` has a penalty, or is taken to: the short form's first, if it is trained."""
    return branch.penalised or (key == SFT and branch.trained is not None)


def _dense_arm_of(branch: Branch) -> str:
    """What it is called without its penalty."""
    return branch.strategy if branch.name == PREFERENCE and branch.trained is None else branch.name


def _is_reserved(name: str) -> bool:
    baselines = tuple(f"{word}-" for word in (SEQUENTIAL, DISJOINT))
    return name in (BASE, JOINT, SEQUENTIAL, DISJOINT) or name.startswith((PAFT, PARALLEL, WITHOUT, *baselines))


def _with_twins(fused: Mapping[str, str], found: Mapping[str, Branch]) -> tuple[dict[str, Branch], dict[str, str]]:
    """All branches in the order of the table, each dense twin before its penalised branch; and who is whose twin.

    A branch under `compare:` that is called as the penalised one stands in for the twin.
    """
    ordered: dict[str, Branch] = {}
    twins: dict[str, str] = {}
    for key, name in fused.items():
        dense = _dense_arm_of(replace(found[name], name=key))
        if name == f"{dense}{SPARSE}" and (dense in found or found[name].trained is None):
            ordered[dense] = found.get(dense) or without_penalty(found[name], dense)
            twins[name] = dense
        ordered[name] = found[name]
    return {**ordered, **{name: branch for name, branch in found.items() if name not in ordered}}, twins


def _wanted(setup: Setup, given: Sequence[str], sequential: bool) -> tuple[Arm, ...]:
    """The arms that are wanted, in the order of the table."""
    config = setup.config
    possible = {arm.name: arm for arm in _possible(setup)}
    patterns = given or config.arms or _usual(setup)
    orders = [*(() if given else config.orders), *([()] if sequential else [])]
    if orders:
        names = [setup.sequential_name(_in_arms(setup, order)) for order in orders]
        patterns = [*patterns, *setup.twins.values(), *names]
    if not given:
        fused = config.fusion.fused
        alone = {branch.name for branch in setup.branches.values() if not branch.made_of}
        branches = (branch for one in fused.values() for branch in one.branches if branch in alone)
        patterns = [*patterns, *branches, *fused, *config.compare.joints]
    if not given and config.compare.disjoint is not None and setup.base.is_dir():
        patterns = [*patterns, DISJOINT]
    meant = {pattern: {name for name in possible if fnmatchcase(name, pattern)} for pattern in patterns}
    raise_if_any([_no_arm(setup, pattern, list(possible)) for pattern, names in meant.items() if not names])
    return tuple(arm for name, arm in possible.items() if any(name in names for names in meant.values()))


def _usual(setup: Setup) -> list[str]:
    """The arms of a run that names none; with three branches or more, what each adds is asked of the first method."""
    fused = f"{PAFT if any(map(setup.is_penalised, setup.fused.values())) else PARALLEL}*"
    first = list(setup.config.fusion.methods)[:1] if len(setup.fused) > 2 else []
    left_out = [f"{WITHOUT}{key}-{method}" for method in first for key in setup.fused]
    compare = setup.config.compare
    controls = [each for name, control in compare.controls.items() for each in (*control.sources, name)]
    return [BASE, *setup.fused.values(), *compare.branches, *controls, fused, *left_out]


def _possible(setup: Setup) -> Iterator[Arm]:
    """Every arm that there can be, in the order of the table."""
    yield setup.base_arm
    for branch in setup.branches.values():
        if not branch.made_of:
            yield _branch_arm(setup, branch)
    for name in setup.config.compare.joints:
        folder = (BRANCHES / name).as_posix()
        yield Arm(name=name, kind="joint", branches=(name,), model=folder, stage=name)
    yield from _sequential_arms(setup)
    yield from _disjoint_arm(setup)
    recipes = [*setup.config.fusion.methods, *_alpha(setup), *setup.config.fusion.recipes]
    sparse, dense = list(setup.fused.values()), setup.dense
    for recipe in recipes if dense is not None else ():
        yield _fused_arm(setup, recipe, f"{PARALLEL}{recipe}", dense or ())
    if sparse != dense:
        for recipe in recipes:
            twin = f"{PARALLEL}{recipe}" if dense is not None else None
            yield _fused_arm(setup, recipe, f"{PAFT}{recipe}", sparse, twin=twin)
    for recipe in setup.config.fusion.methods if len(sparse) > 2 else ():
        for key, left_out in setup.fused.items():
            rest = [name for name in sparse if name != left_out]
            yield _fused_arm(setup, recipe, f"{WITHOUT}{key}-{recipe}", rest, without=left_out)
    yield from _in_memory(setup)


def _in_memory(setup: Setup) -> list[Arm]:
    """The fusions that are merged in memory to be scored, and never written.

    Raises:
        PaftError: All that is wrong with them.
    """
    fused = setup.config.fusion.fused
    problems = [
        f"{setup.file}: fusion.fused.{name}: {problem}"
        for name, one in fused.items()
        for problem in _problems_in_memory(setup, name, one)
    ]
    if fused and setup.config.evaluation is None:
        problems.append(
            f"{setup.file}: fusion.fused: is there to be scored, and `evaluation: false` scores nothing. Leave one of them out."
        )
    raise_if_any(problems)
    return [
        Arm(
            name=name,
            kind="fused",
            penalised=any(map(setup.is_penalised, one.branches)),
            branches=one.branches,
            recipe=one.method,
            in_memory=True,
            stage="-".join(["fuse-in-memory", *sorted(set(one.branches))]),
        )
        for name, one in fused.items()
    ]


def _problems_in_memory(setup: Setup, name: str, one: FusedConfig) -> Iterator[str]:
    if name in setup.branches or _is_reserved(name):
        yield "an arm of the run is called so. Name it otherwise."
    there = {
        each.name: BranchName(each.name, each.role or "sft") for each in setup.branches.values() if not each.is_joint
    }
    if not setup.base.is_dir():  # a base that is still on the hub, without which nobody knows the disjoint modules
        there |= {branch: BranchName(branch, "sft") for branch in one.branches if branch.startswith(f"{DISJOINT}-")}
    unknown = [branch for branch in dict.fromkeys(one.branches) if branch not in there]
    yield from (f"branches: {branch}: no such branch. {suggestion(branch, list(there))}" for branch in unknown)
    twice = [branch for branch in dict.fromkeys(one.branches) if one.branches.count(branch) > 1]
    yield from (f"branches: {branch} is there twice. Name it once." for branch in twice)
    if not unknown:
        branches = [there[branch] for branch in one.branches]
        yield from setting_problems(one.method, one.settings, branches)
    yield from number_problems(one.method, len(one.branches))


def _alpha(setup: Setup) -> list[str]:
    """The way from one branch to the other, if it is wanted."""
    if setup.config.fusion.alpha is None:
        return []
    where, roles = f"{setup.file}: fusion.methods.{ALPHA}", [setup.branches[name].role for name in setup.fused.values()]
    if sorted(map(str, roles)) != sorted(ROLES):
        raise PaftError(
            f"{where}: goes from one SFT branch to one preference branch, and there are {len(roles)} branches. Leave it out; "
            "`axolotl paft search` weighs any number."
        )
    if setup.config.evaluation is None:
        raise PaftError(f"{where}: is chosen by scores, and `evaluation: false` takes none. Leave one of them out.")
    return [ALPHA]


def _branch_arm(setup: Setup, branch: Branch) -> Arm:
    return Arm(
        name=branch.name,
        kind="branch",
        role=branch.role,
        penalised=setup.is_penalised(branch.name),
        branches=(branch.name,),
        control=branch.control.control if branch.control else None,
        beside=branch.name in setup.config.compare.named and branch.name not in setup.twins.values(),
        twin=setup.twins.get(branch.name),
        model=seen_from(setup.run_dir, setup.branch_folder(branch.name)),
        stage=branch.name if branch.trained is None else None,
    )


def _sequential_arms(setup: Setup) -> Iterator[Arm]:
    """The baselines that train one branch, then others on top: without the penalty, unless the penalised arm is named."""
    there = _in_an_order(setup)
    raise_if_any(
        [
            f"{setup.file}: sequential: {problem}"
            for order in setup.config.orders
            for problem in (order_problems(order, there) if order else ())
        ]
    )
    orders = [_in_arms(setup, order) for order in setup.config.orders]
    if not list(order_problems(_usual_order(setup), there)):
        orders.insert(0, _in_arms(setup, ()))
    later = dict.fromkeys(name for order in orders for name in order[1:])
    raise_if_any(
        [
            f"{setup.file}: sequential: {name}: its loss is bounded by that of a training without the penalty, which starts from "
            "the base, not from another branch. Name it first, or give it paft_l1_lambda or paft_target_sparsity."
            for name in later
            if setup.reference_of(setup.branches[name]) is not None
        ]
    )
    for order in dict.fromkeys(orders):
        name = setup.sequential_name(order)
        as_adapter = setup.branches[order[-1]].is_adapter
        yield Arm(
            name=name,
            kind="sequential",
            branches=order[:1],
            order=order,
            model=((MODELS if as_adapter else BRANCHES) / name).as_posix(),
            stage=f"merge-{name}" if as_adapter else name,
        )


def _in_an_order(setup: Setup) -> dict[str, Branch | None]:
    """Name in an order → the branch: without its penalty, None if it cannot be had so; with it by the name of its arm."""
    names = {key: setup.twins.get(name, name) for key, name in setup.fused.items()}
    fused = {key: None if setup.is_penalised(name) else setup.branches[name] for key, name in names.items()}
    compare = setup.config.compare
    beside = [name for name in (*compare.branches, *compare.controls) if name in setup.branches]
    return {name: setup.branches[name] for name in (*setup.twins, *beside)} | fused


def _in_arms(setup: Setup, order: Sequence[str]) -> tuple[str, ...]:
    """An order of the file's in the names of arms; of no names: SFT branches first, then preferences."""
    dense = {key: setup.twins.get(arm, arm) for key, arm in setup.fused.items()}
    return tuple(dense.get(name, name) for name in order or _usual_order(setup))


def _usual_order(setup: Setup) -> list[str]:
    return [key for role in ROLES for key, name in setup.fused.items() if setup.branches[name].role == role]


def _disjoint_arm(setup: Setup) -> Iterator[Arm]:
    """The baseline whose branches train modules of their own: their plain sum, in which nothing can interfere."""
    branches = tuple(name for name in setup.branches if name.startswith(f"{DISJOINT}-"))
    if branches:
        folder = (MODELS / DISJOINT).as_posix()
        yield Arm(name=DISJOINT, kind="disjoint", branches=branches, recipe=SUM, model=folder, stage=f"fuse-{DISJOINT}")


def _fused_arm(
    setup: Setup,
    recipe: str,
    name: str,
    branches: Sequence[str],
    *,
    twin: str | None = None,
    without: str | None = None,
) -> Arm:
    return Arm(
        name=name,
        kind="fused",
        penalised=any(map(setup.is_penalised, branches)),
        branches=tuple(branches),
        recipe=recipe,
        without=without,
        twin=twin,
        model=(MODELS / name).as_posix(),
        stage=f"fuse-{name}",
    )


def _no_arm(setup: Setup, name: str, possible: Sequence[str]) -> str:
    if name in setup.fused or name == SEQUENTIAL or name.startswith(PARALLEL):
        return (
            f"arm {name}: needs the axolotl configs of the branches, to train what it compares with, and one is given as "
            "`trained:`. Give its config, or a dense branch of the same name under compare: {sft: …}."
        )
    is_of_twins = name.startswith(PAFT) and not any(each.startswith(PAFT) for each in possible)
    if is_of_twins or name.removesuffix(SPARSE) in setup.fused.values():
        return f"arm {name}: there is no penalty in the config of a branch that it is made of. Add one, or name a dense arm."
    return f"arm {name}: there is none. {suggestion(name, possible)}"


def search_request(file: Path) -> SearchRequest:
    """The search that a `paft.yml` asks for, as it is by default where nothing is under `search:`.

    Raises:
        PaftError: All that is wrong with the file; branches that are not trained yet.
    """
    setup = open_setup(file)
    config = setup.config
    search = config.search or SearchConfig.model_validate({})
    searched = _searched(setup, search.branches or ())
    branches = tuple(
        RecipeBranch(setup.key(name), setup.branches[name].role or "sft", setup.branch_folder(name))
        for name in searched
    )
    raise_if_any(
        [
            f"{file}: the branch {name} is not trained yet (there is no {branch.path}). "
            f"Run `axolotl paft run {quote(str(file))}` first."
            for name, branch in zip(searched, branches, strict=True)
            if not branch.path.is_dir()
        ]
    )
    in_chat = not config.evaluation or config.evaluation.apply_chat_template
    return SearchRequest(setup.base, branches, config.output_dir, search, in_chat)


def _searched(setup: Setup, given: Sequence[str]) -> list[str]:
    """The arms of the branches to search: the given ones, or of each branch the form that the run's arms are made of.

    Where they are made of both it is the penalised one.
    """
    if not given:
        needed = {branch.name for branch in setup.needed}
        return [name if name in needed else setup.twins.get(name, name) for name in setup.fused.values()]
    where = f"{setup.file}: search.branches"
    possible = [*setup.fused.values(), *setup.twins.values()]
    problems = [f"{where}: {name}: {suggestion(name, possible)}" for name in given if name not in possible]
    keys = [setup.key(name) for name in given if name in possible]
    if len({*keys}) < len(keys):
        problems.append(f"{where}: {', '.join(given)}: two are of the same branch. Name one form of each.")
    raise_if_any(problems)
    return list(given)
