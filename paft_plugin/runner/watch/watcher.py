"""Who is told what happens in a run: the display, the event log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol

from paft_plugin.runner.stages import Stage


@dataclass(frozen=True)
class StageResult:
    """How a stage ended well: run now, or skipped because it was up to date. `seconds` is the time of the run that counts."""

    name: str
    title: str
    status: Literal["done", "skipped"]
    seconds: float
    log: Path


class Watcher(Protocol):
    """A context that lasts as long as stages may run."""

    def __enter__(self) -> Watcher: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None: ...

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
