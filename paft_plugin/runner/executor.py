"""What the scheduler works with: a place where stages run (`local.py` is this machine, `ray/` a cluster), and who is told of it
(`watch/`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

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
    peak_memory: int | None = None
    """Most bytes of main memory that one of its processes held at once, where that is known."""


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


@dataclass(frozen=True)
class StageResult:
    """How a stage ended well: run now, or skipped because it was up to date. `seconds` is the time of the run that counts."""

    name: str
    title: str
    status: Literal["done", "skipped"]
    seconds: float
    log: Path


class Watcher(Protocol):
    """Who is told what happens in a run (the display, the event log): a context that lasts as long as stages may run."""

    def __enter__(self) -> Watcher: ...

    def __exit__(self, _kind: object, error: BaseException | None, _where: object) -> None: ...

    def planned(self, ordered: Sequence[Stage], reasons: Mapping[str, str]) -> None:
        """All stages of the run, and why some of them must run."""

    def started(self, stage: Stage, log: Path, where: str) -> None:
        """`stage` runs from now on, at `where` (empty: here), and writes to `log`."""

    def ended(self, result: StageResult) -> None:
        """A stage is through."""

    def lost(self, stage: Stage, why: str) -> None:
        """The place where `stage` ran is gone; it will start again."""

    def failed(self, stage: Stage, why: str) -> None:
        """`stage` failed, in a few words; what does not need it goes on, and the error in the end says more."""

    def stopping(self) -> None:
        """What still runs is being ended."""

    def refresh(self) -> None:
        """Time passes; called often."""
