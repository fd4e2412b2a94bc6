"""`configs/run.json`: what a run is made of, as the pipeline tells the report."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paft_plugin.errors import PaftError
from paft_plugin.files import read_json

RUN_FILE = Path("configs") / "run.json"
SCHEMA = 1


@dataclass(frozen=True)
class Step:
    """One stage, as a person in the run's folder would do it by hand."""

    name: str
    title: str
    command: Sequence[str]

    @property
    def line(self) -> str:
        """The command as one types it into a shell."""
        return shlex.join(self.command)


@dataclass(frozen=True)
class RunFile:
    """`configs/run.json`, which the pipeline writes before any stage starts."""

    description: str
    """What the user says of it, in Markdown; may be empty."""
    base: str
    branches: frozenset[str]
    """Arms that are one branch each."""
    skill: str | None
    preference: str | None
    thresholds: Sequence[float]
    arms: Mapping[str, str]
    """Arm → folder of its model, relative to the run's where it lies in it; in the order of the table."""
    fused: Mapping[str, Sequence[str]]
    """Fused arm → the branches that it is made from."""
    steps: Sequence[Step]


def read_run(run_dir: Path) -> RunFile | None:
    """What the run in `run_dir` is made of; None where there is no run.

    Raises:
        PaftError: `run.json` is damaged or of another version.
    """
    file = run_dir / RUN_FILE
    if not file.is_file():
        return None
    content: dict[str, Any] = read_json(file)
    if content.get("schema") != SCHEMA:
        raise PaftError(f"{file}: its schema is {content.get('schema')}, not {SCHEMA}. Run `axolotl paft run` again.")
    try:
        return RunFile(
            content["description"],
            content["base"],
            frozenset(content["branches"]),
            content["skill"],
            content["preference"],
            content["thresholds"],
            content["arms"],
            content["fused"],
            [Step(each["name"], each["title"], each["command"]) for each in content["stages"]],
        )
    except (KeyError, TypeError) as error:
        raise PaftError(f"{file}: damaged ({error!r}). Run `axolotl paft run` again.") from None
