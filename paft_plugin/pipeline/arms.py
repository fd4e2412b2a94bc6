"""A run as it is meant: the branches of a `paft.yml`, the arms that are wanted, and where everything lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

from paft_plugin.errors import PaftError, raise_if_any
from paft_plugin.pipeline.base import base_folder
from paft_plugin.pipeline.branches import Branch, preference_name, read_branch, without_penalty
from paft_plugin.pipeline.config import PaftConfig, read_config
from paft_plugin.runner.devices import find_devices
from paft_plugin.schema import suggestion
from paft_plugin.search.config import SearchRequest

BASE, SPARSE, DENSE, SEQUENTIAL = "base", "sft-l1", "sft", "sequential"
PAFT, PARALLEL = "paft", "parallel"
"""How arms begin that fuse the preference branch with the penalised SFT branch, and with its dense twin."""
WHOLE = "sft-whole"
"""The dense SFT branch as a model, on which the sequential baseline goes on."""


@dataclass(frozen=True)
class Setup:
    """What a run is made of; nothing of it has been started."""

    file: Path
    """The `paft.yml`."""
    config: PaftConfig
    base: Path
    """Folder of the base model."""
    branches: Mapping[str, Branch]
    """Every branch that could be wanted, by the name of its arm: `sft-l1`, `sft`, the preference branch's, further ones."""
    preference: str
    """Name of the preference branch."""
    arms: Sequence[str]
    """The arms to score, in the order of the table."""

    @property
    def run_dir(self) -> Path:
        return self.config.output_dir

    @cached_property
    def on_cpu(self) -> bool:
        """Whether its trainings run on this machine, and that without a GPU; looked up once, since it starts a process."""
        executor = self.config.executor
        if executor.kind != "local":
            return False
        return not (find_devices() if executor.devices == "auto" else executor.devices)

    @property
    def recipes(self) -> list[str]:
        """What comes after `paft-` and `parallel-`."""
        return [*self.config.fusion.methods, *self.config.fusion.recipes]

    @property
    def fused(self) -> list[str]:
        """The arms that fuse two branches."""
        return [arm for arm in self.arms if arm not in self.branches and arm not in (BASE, SEQUENTIAL)]

    @property
    def needed(self) -> list[str]:
        """The branches that the arms are made from, the two that the paper is about first."""
        wanted = {name for arm in self.arms for name in self.sources(arm)}
        order = [SPARSE, self.preference, *self.branches]
        return [name for name in dict.fromkeys(order) if name in wanted]

    def sources(self, arm: str) -> list[str]:
        """The branches that an arm is made from."""
        if arm in self.branches:
            return [arm]
        if arm == SEQUENTIAL:
            return [DENSE]
        if arm in self.fused:
            return [SPARSE if arm.startswith(f"{PAFT}-") else DENSE, self.preference]
        return []

    @property
    def remote(self) -> list[str]:
        """What the run needs from a hub: hub names, or lm-eval's own tasks."""
        trainings = [self.branches[name] for name in self.needed]
        evaluation = self.config.evaluation
        return [
            *([self.config.base] if self.config.base_is_remote else []),
            *(name for branch in trainings for name in branch.remote_data()),
            *(evaluation.measures if evaluation and evaluation.tasks is None else []),
        ]

    def branch_folder(self, name: str) -> Path:
        """Where a branch lies once it is trained."""
        return self.branches[name].trained or self.run_dir / "branches" / name

    def model(self, arm: str) -> Path:
        """Where an arm's model or adapter lies."""
        if arm == BASE:
            return self.base
        if arm in self.branches:
            return self.branch_folder(arm)
        if arm == SEQUENTIAL and not self.branches[self.preference].is_adapter:
            return self.run_dir / "branches" / arm
        return self.run_dir / "models" / arm


def locate(
    config: PaftConfig, file: Path, arms: Sequence[str] = (), sequential: bool = False, *, download: bool = False
) -> Setup:
    """`resolve`, with the base where it lies; what is wrong beside it is said before a long download.

    Args:
        config: From `read_config`.
        file: The `paft.yml`.
        arms: Instead of the file's own; may hold patterns such as `paft-*`.
        sequential: The sequential baseline is wanted, too.
        download: Whether a hub base that is not in the local cache may be fetched.

    Raises:
        PaftError: All that is wrong.
    """
    problems: list[str] = []
    setup, base = None, Path(config.base)
    try:
        setup = resolve(config, file, base, arms, sequential)
    except PaftError as error:
        problems += error.problems
    if not (problems and config.base_is_remote):
        try:
            base = base_folder(config, download)
        except PaftError as error:
            problems += error.problems
    raise_if_any(problems)
    assert setup is not None
    return replace(setup, base=base)


def resolve(config: PaftConfig, file: Path, base: Path, arms: Sequence[str] = (), sequential: bool = False) -> Setup:
    """What `config` of `file` wants, with its base in the folder `base`.

    Args:
        config: From `read_config`.
        file: The `paft.yml`.
        base: Folder of the base model.
        arms: Instead of the file's own; may hold patterns such as `paft-*`.
        sequential: The sequential baseline is wanted, too.

    Raises:
        PaftError: All that is wrong: configs that cannot be read, arms that there cannot be.
    """
    folder = file.resolve().parent
    problems: list[str] = []
    branches: dict[str, Branch] = {}
    preference = "preference"
    try:
        branches[SPARSE] = read_branch(SPARSE, config.sft, folder)
        if branches[SPARSE].trained is None:
            branches[DENSE] = without_penalty(branches[SPARSE], DENSE)
    except PaftError as error:
        problems += [f"sft: {problem}" for problem in error.problems]
    try:
        branch = read_branch(preference, config.preference, folder)
        preference = preference_name(branch)
        branches[preference] = replace(branch, name=preference)
    except PaftError as error:
        problems += [f"preference: {problem}" for problem in error.problems]
    for name, spec in config.compare.items():
        if name in (BASE, SPARSE, SEQUENTIAL, preference) or name.startswith((f"{PAFT}-", f"{PARALLEL}-")):
            problems.append(f"compare.{name}: an arm of the run is called so. Name it otherwise.")
            continue
        try:
            branches[name] = read_branch(name, spec, folder)
        except PaftError as error:
            problems += [f"compare.{name}: {problem}" for problem in error.problems]
    raise_if_any([f"{file}: {problem}" for problem in problems])
    ordered = {name: branches[name] for name in (DENSE, SPARSE, preference, *config.compare) if name in branches}
    chosen = _arms(config, ordered, preference, list(arms), sequential)
    return Setup(file, config, base, ordered, preference, chosen)


def _arms(
    config: PaftConfig, branches: Mapping[str, Branch], preference: str, given: list[str], sequential: bool
) -> list[str]:
    """The arms that are wanted, in the order of the table."""
    recipes = [*config.fusion.methods, *config.fusion.recipes]
    fused = [f"{kind}-{recipe}" for kind in (PARALLEL, PAFT) for recipe in recipes]
    possible = [BASE, *branches, SEQUENTIAL, *fused]
    if DENSE not in branches:  # the SFT branch was trained elsewhere, and it has no twin
        possible = [arm for arm in possible if arm != SEQUENTIAL and not arm.startswith(f"{PARALLEL}-")]
    if branches[preference].trained is not None and SEQUENTIAL in possible:
        possible.remove(SEQUENTIAL)
    default = [BASE, SPARSE, preference, *config.compare, f"{PAFT}-*"]
    patterns = given or config.arms or default
    if sequential or (config.sequential and not given):
        patterns = [*patterns, DENSE, SEQUENTIAL]
    raise_if_any([_no_arm(pattern, possible) for pattern in patterns if not _matches(pattern, possible)])
    return [arm for arm in possible if any(fnmatchcase(arm, pattern) for pattern in patterns)]


def _matches(pattern: str, possible: Sequence[str]) -> bool:
    return any(fnmatchcase(arm, pattern) for arm in possible)


def _no_arm(name: str, possible: Sequence[str]) -> str:
    if name in (DENSE, SEQUENTIAL) or name.startswith(f"{PARALLEL}-"):
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
    setup = locate(config, file)
    folders = {name: setup.branch_folder(name) for name in (SPARSE, setup.preference)}
    raise_if_any(
        [
            f"{file}: the branch {name} is not trained yet (there is no {folder}). Run `axolotl paft run {file}` first."
            for name, folder in folders.items()
            if not folder.is_dir()
        ]
    )
    sft, preference = folders.values()
    return SearchRequest(setup.base, sft, preference, config.output_dir, config.search)
