"""An arm: one row of a comparison. Resolved once, when a run is planned, and kept in the run's `configs/run.json`.

What an arm is made of stands in its fields; its name is for people.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from paft_plugin.files import JsonFile

RUN_FILE = Path("configs") / "run.json"
"""Below the folder of a run."""
Kind = Literal["base", "branch", "joint", "sequential", "disjoint", "fused"]
Role = Literal["sft", "preference"]
ControlKind = Literal["rescale_l2", "rescale_l1", "prune", "prune_rescale", "drop", "scale"]
"""What is done to a dense delta, so that it has the norm or the sparsity of a penalised one, but learnt nothing from it."""


class Arm(BaseModel):
    """One row of a comparison."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    """What tables and plots call it."""
    kind: Kind
    """`base`: θ_pre itself. `branch`: one training on the base. `joint`: one training on the rows of all branches.
    `sequential`: one training on top of what another came to. `disjoint`: a sum of branches that trained modules of their own.
    `fused`: a merge of branches."""
    role: Role | None = None
    """What a branch teaches; of other kinds None."""
    penalised: bool = False
    """Whether a delta of it was trained with the penalty."""
    branches: tuple[str, ...] = ()
    """The branches that it is made of, by the names of their arms; a branch is made of itself."""
    order: tuple[str, ...] = ()
    """Of a sequential arm: the branches that are trained one after the other. Only the first one's delta is part of it."""
    recipe: str | None = None
    """What a fused arm is fused by: a merge method's name, or a recipe's under `fusion.recipes`."""
    without: str | None = None
    """The branch that a leave-one-out fusion lacks: what it taught is what this arm lost."""
    control: ControlKind | None = None
    """Of a branch that was not trained: what was done to another one's delta."""
    beside: bool = False
    """Whether it stands beside the branches that are fused, as another form of one."""
    twin: str | None = None
    """The arm that differs from this penalised one by the penalty alone, whether it is in the run or not."""
    model: str = ""
    """Folder of its model or adapter: relative to the run's where it lies in it, else absolute (or the base's hub name); empty
    of one in memory."""
    in_memory: bool = False
    """Whether it is merged in memory to be scored, and lies nowhere."""
    stage: str | None = None
    """The stage that makes it; None for what was there before."""

    @property
    def is_aligned(self) -> bool:
        """Whether it combines the SFT skill with the preference, so that an alignment tax can be asked for."""
        return self.kind in ("joint", "sequential", "disjoint", "fused")

    @property
    def is_sft(self) -> bool:
        """Whether it is an SFT branch by itself."""
        return self.kind == "branch" and self.role == "sft"


class Step(BaseModel):
    """One stage, as a person in the run's folder would do it by hand."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    title: str
    command: tuple[str, ...]

    @property
    def line(self) -> str:
        """The command as one types it into a shell."""
        return shlex.join(self.command)


class RunFile(JsonFile):
    """`configs/run.json`: what a run is made of, as the pipeline tells those who read its folder."""

    SCHEMA: ClassVar[int] = 3
    AGAIN: ClassVar[str] = "Run `axolotl paft run` again."

    description: str = ""
    """What the user says of the run, in Markdown; may be empty."""
    base: str
    skills: tuple[str, ...] = ()
    """The measures of what the SFT branches teach; none: those of held-out rows."""
    preferences: tuple[str, ...] = ()
    """The measures of what the preference branches teach; none: those of held-out rows."""
    margins: dict[str, float] = Field(default_factory=dict)
    """Measure, or `""` for all shares → the largest difference that does not matter, where the user said it."""
    thresholds: tuple[float, ...] = ()
    arms: tuple[Arm, ...]
    """In the order of the table."""
    stages: tuple[Step, ...] = Field(default=())

    @classmethod
    def upgraded(cls, content: dict[str, Any], schema: object, path: Path) -> dict[str, Any]:
        if schema not in (1, 2):
            return super().upgraded(content, schema, path)
        goals = {f"{role}s": [] if content.get(role) is None else [content[role]] for role in ("skill", "preference")}
        arms = _Schema1.model_validate(content).resolved() if schema == 1 else content["arms"]
        return {**content, **goals, "arms": arms}


class _Schema1(BaseModel):
    """What said what an arm is until schema 2: its name, and lists of names."""

    branches: tuple[str, ...]
    arms: dict[str, str]
    """Arm → folder of its model."""
    fused: dict[str, tuple[str, ...]]
    """Fused arm → the branches that it is made from."""

    def resolved(self) -> list[Arm]:
        return [self._arm(name).model_copy(update={"model": model}) for name, model in self.arms.items()]

    def _arm(self, name: str) -> Arm:
        if name == "base":
            return Arm(name=name, kind="base")
        if name == "sequential":
            return Arm(name=name, kind="sequential", branches=("sft",))
        if name.startswith("sequential-"):
            return Arm(name=name, kind="sequential")
        if name.startswith("disjoint-"):
            return Arm(name=name, kind="disjoint")
        if name in self.branches:
            twin = name.removesuffix("-l1") if name.endswith("-l1") else None
            role: Role = "sft" if name == "sft" or twin is not None else "preference"
            return Arm(name=name, kind="branch", role=role, penalised=twin is not None, branches=(name,), twin=twin)
        kind, _, recipe = name.partition("-")
        twin = f"parallel-{recipe}" if kind == "paft" else None
        branches = self.fused.get(name, ())
        return Arm(name=name, kind="fused", penalised=twin is not None, branches=branches, recipe=recipe, twin=twin)


def read_run(run_dir: Path) -> RunFile | None:
    """What the run in `run_dir` is made of; None where there is no run.

    Raises:
        PaftError: `run.json` is damaged, or of a version that cannot be read.
    """
    file = run_dir / RUN_FILE
    return RunFile.read(file) if file.is_file() else None


def arm_named(name: str, arms: Iterable[Arm] = ()) -> Arm:
    """The arm of that name among `arms`; of one that isn't there, as in a `results.json` without its run, what the name says."""
    for arm in arms:
        if arm.name == name:
            return arm
    branches = () if name.startswith(("paft-", "parallel-", "without-")) else (name,)
    return _Schema1(branches=branches, arms={name: ""}, fused={}).resolved()[0]
