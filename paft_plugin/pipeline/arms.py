"""What a run is made of: the branches of a `paft.yml`, the arms that are wanted of them, and where everything lies.

Here, and only here, arms get their names; everybody else reads their fields.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

from paft_plugin.errors import PaftError, collecting, raise_if_any
from paft_plugin.evaluation.arms import Arm, Kind, Role
from paft_plugin.pipeline.branches import Branch, preference_name, read_branch, without_penalty
from paft_plugin.pipeline.config import PaftConfig, read_config
from paft_plugin.pipeline.hub import base_folder
from paft_plugin.runner.devices import find_devices
from paft_plugin.schema import suggestion
from paft_plugin.search.config import SearchRequest

BASE, PENALISED, DENSE, SEQUENTIAL = "base", "sft-l1", "sft", "sequential"
PAFT, PARALLEL = "paft-", "parallel-"
"""How arms begin that fuse the preference branch with the penalised SFT branch, and with its dense twin."""
WHOLE = "sft-whole"
"""The dense SFT branch as a model, on which the sequential baseline goes on."""
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
    sft: str
    """Name of the penalised SFT branch."""
    dense: str | None
    """Name of its dense twin; None if it can have none."""
    preference: str
    """Name of the preference branch."""
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
        """The branches that the arms are made from, the two that are fused first."""
        wanted = {name for arm in self.arms for name in arm.branches}
        order = dict.fromkeys([self.sft, self.preference, *self.branches])
        return [self.branches[name] for name in order if name in wanted]

    @property
    def trainings(self) -> list[Branch]:
        """Those of the needed branches that the run trains itself."""
        return [branch for branch in self.needed if branch.trained is None]

    def of_kind(self, kind: Kind) -> list[Arm]:
        """Its arms of one kind."""
        return [arm for arm in self.arms if arm.kind == kind]

    @property
    def remote(self) -> list[str]:
        """What the run needs from a hub: hub names, or lm-eval's own tasks."""
        evaluation = self.config.evaluation
        return [
            *([self.config.base] if self.config.base_is_remote else []),
            *(name for branch in self.needed for name in branch.remote_data()),
            *(evaluation.measures if evaluation and evaluation.tasks is None else []),
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
    config = read_config(file)
    problems: list[str] = []
    base = Path(config.base)
    with collecting(problems):
        resolve(config, file, base, arms, sequential)
    if not (problems and config.base_is_remote):
        with collecting(problems):
            base = base_folder(config, download)
    raise_if_any(problems)
    return resolve(config, file, base, arms, sequential)


def resolve(config: PaftConfig, file: Path, base: Path, arms: Sequence[str] = (), sequential: bool = False) -> Setup:
    """What `config`, read from `file`, wants, with its base in the folder `base`; see `open_setup`.

    Raises:
        PaftError: All that is wrong: configs that cannot be read, arms that there cannot be.
    """
    branches, preference = _branches(config, file)
    setup = Setup(file, config, base, branches, PENALISED, DENSE if DENSE in branches else None, preference)
    return replace(setup, arms=_wanted(setup, arms, sequential))


def _branches(config: PaftConfig, file: Path) -> tuple[dict[str, Branch], str]:
    """All branches in the order of the table, and the name of the preference branch."""
    preference = "preference"
    specs = {"sft": (PENALISED, config.sft), "preference": (preference, config.preference)}
    specs |= {f"compare.{name}": (name, spec) for name, spec in config.compare.items()}
    branches: dict[str, Branch] = {}
    problems: list[str] = []
    for key, (name, spec) in specs.items():
        try:
            if key.startswith("compare.") and _is_taken(name, preference):
                raise PaftError("an arm of the run is called so. Name it otherwise.")
            branch = read_branch(name, spec, file.resolve().parent)
            if key == "preference":
                preference = preference_name(branch)
                branch = replace(branch, name=preference)
            branches[branch.name] = branch
        except PaftError as error:
            problems += [f"{file}: {key}: {problem}" for problem in error.problems]
    raise_if_any(problems)
    if branches[PENALISED].trained is None and DENSE not in branches:
        branches[DENSE] = without_penalty(branches[PENALISED], DENSE)
    order = dict.fromkeys([DENSE, PENALISED, preference, *config.compare])
    return {name: branches[name] for name in order if name in branches}, preference


def _is_taken(name: str, preference: str) -> bool:
    """Whether another arm is called so; `compare: {sft: …}` stands in for the dense twin."""
    return name in (BASE, PENALISED, SEQUENTIAL, preference) or name.startswith((PAFT, PARALLEL))


def _wanted(setup: Setup, given: Sequence[str], sequential: bool) -> tuple[Arm, ...]:
    """The arms that are wanted, in the order of the table."""
    config = setup.config
    patterns = given or config.arms or [BASE, setup.sft, setup.preference, *config.compare, f"{PAFT}*"]
    if sequential or (config.sequential and not given):
        patterns = [*patterns, DENSE, SEQUENTIAL]
    possible = {arm.name: arm for arm in _possible(setup)}
    meant = {pattern: {name for name in possible if fnmatchcase(name, pattern)} for pattern in patterns}
    raise_if_any([_no_arm(pattern, list(possible)) for pattern, names in meant.items() if not names])
    return tuple(arm for name, arm in possible.items() if any(name in names for names in meant.values()))


def _possible(setup: Setup) -> Iterator[Arm]:
    """Every arm that there can be, in the order of the table."""
    yield Arm(name=BASE, kind="base", model=_seen_from(setup.run_dir, setup.base))
    for branch in setup.branches.values():
        yield _branch_arm(setup, branch)
    if setup.dense is not None and setup.branches[setup.preference].trained is None:
        yield _sequential_arm(setup, setup.dense)
    recipes = [*setup.config.fusion.methods, *setup.config.fusion.recipes]
    if setup.dense is not None:
        for recipe in recipes:
            yield _fused_arm(setup, recipe, f"{PARALLEL}{recipe}", setup.dense)
    for recipe in recipes:
        twin = f"{PARALLEL}{recipe}" if setup.dense is not None else None
        yield _fused_arm(setup, recipe, f"{PAFT}{recipe}", setup.sft, twin)


def _branch_arm(setup: Setup, branch: Branch) -> Arm:
    roles: dict[str | None, Role] = {setup.sft: "sft", setup.dense: "sft", setup.preference: "preference"}
    return Arm(
        name=branch.name,
        kind="branch",
        role=roles.get(branch.name, branch.role),
        penalised=branch.name == setup.sft or branch.penalised,
        branches=(branch.name,),
        twin=setup.dense if branch.name == setup.sft else None,
        model=_seen_from(setup.run_dir, setup.branch_folder(branch.name)),
        stage=branch.name if branch.trained is None else None,
    )


def _sequential_arm(setup: Setup, dense: str) -> Arm:
    as_adapter = setup.branches[setup.preference].is_adapter
    return Arm(
        name=SEQUENTIAL,
        kind="sequential",
        branches=(dense,),
        model=((MODELS if as_adapter else BRANCHES) / SEQUENTIAL).as_posix(),
        stage=f"merge-{SEQUENTIAL}" if as_adapter else SEQUENTIAL,
    )


def _fused_arm(setup: Setup, recipe: str, name: str, sft: str, twin: str | None = None) -> Arm:
    return Arm(
        name=name,
        kind="fused",
        penalised=sft == setup.sft,
        branches=(sft, setup.preference),
        recipe=recipe,
        twin=twin,
        model=(MODELS / name).as_posix(),
        stage=f"fuse-{name}",
    )


def _seen_from(run_dir: Path, path: Path) -> str:
    """A path relative to the run's folder if it lies in it, so that the folder can be moved."""
    return path.relative_to(run_dir).as_posix() if path.is_relative_to(run_dir) else str(path)


def _no_arm(name: str, possible: Sequence[str]) -> str:
    if name in (DENSE, SEQUENTIAL) or name.startswith(PARALLEL):
        return (
            f"arm {name}: needs the axolotl configs of both branches, to train what it compares with, and one is given as "
            f"`trained:`. Give its config, or name a dense SFT branch under compare: {{{DENSE}: …}}."
        )
    return f"arm {name}: there is none. {suggestion(name, possible)}"


def search_request(file: Path) -> SearchRequest:
    """The search that a `paft.yml` asks for.

    Raises:
        PaftError: All that is wrong with the file; no `search:` in it; branches that are not trained yet.
    """
    config = read_config(file)
    if config.search is None:
        raise PaftError(f"{file}: search: missing. It says what to search, and on which tasks: see the README.")
    setup = open_setup(file)
    folders = {name: setup.branch_folder(name) for name in (setup.sft, setup.preference)}
    raise_if_any(
        [
            f"{file}: the branch {name} is not trained yet (there is no {folder}). Run `axolotl paft run {file}` first."
            for name, folder in folders.items()
            if not folder.is_dir()
        ]
    )
    sft, preference = folders.values()
    return SearchRequest(setup.base, sft, preference, config.output_dir, config.search)
