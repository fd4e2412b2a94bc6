"""What a place where stages run has to be able to do; `local.py` is this machine, `ray/` a cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from paft_plugin.runner.stages import Stage


@dataclass(frozen=True)
class Job:
    """One attempt at a stage."""

    stage: Stage
    run_dir: Path
    log: Path
    append: bool
    """The log goes on: the stage resumes."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Extra variables that say how to run, and change no result (thread counts, offline mode)."""

    @property
    def environment(self) -> dict[str, str]:
        """All variables that the command gets beside those of the process that starts it; what matters to results wins."""
        return {"PYTHONUNBUFFERED": "1", **self.variables, **self.stage.environment}


@dataclass(frozen=True)
class Ended:
    """How an attempt ended."""

    code: int
    """Return code; negative: a signal."""
    lost: str = ""
    """Why the place where it ran is gone, if it is: the stage starts again elsewhere, and that is no failure of its own."""


class Running(Protocol):
    """A stage under way."""

    where: str
    """For people: `GPU 0`, `node 10.0.0.7` … or nothing."""

    def poll(self) -> Ended | None:
        """How it ended, or None while it runs; once it has ended, what it held is free again."""

    def stop(self) -> None:
        """Ask all of its processes to end; those that have not after the grace are killed."""

    def kill(self) -> None:
        """Kill all of its processes now."""

    def let_go(self) -> None:
        """It did not end although it was killed: stop waiting for it."""


class Executor(Protocol):
    """Where stages run."""

    grace: float
    """Seconds between SIGTERM and SIGKILL for commands that have to be stopped."""

    def check(self, stage: Stage) -> str:
        """Why `stage` can never run here; empty if it can."""

    def has_room(self, stage: Stage, waiting: Sequence[Stage]) -> bool:
        """Whether `stage` can start now, beside what runs, without taking what those before it in the plan are `waiting` for."""

    def start(self, job: Job, lock: int) -> Running:
        """Start an attempt at the stage for which `has_room` has just said yes.

        Its processes hold the descriptor `lock` (or, elsewhere, what serves the same) while they live.
        """

    def close(self) -> None:
        """Let go of whatever the executor holds; nothing runs any more."""
