"""What a person sees while stages run: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from paft_plugin.runner.logs import NO_READER, LogReader, StageProgress
from paft_plugin.runner.markers import FIRST
from paft_plugin.runner.stages import Stage
from paft_plugin.runner.watch.watcher import StageResult

_REFRESH = 0.2  # seconds between two frames
_LINE_EVERY = 60.0  # seconds between two lines on one stage, off a terminal


def duration(seconds: float) -> str:
    """Seconds as `4.2 s`, `3:07` or `1:02:33`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def in_words(progress: StageProgress) -> str:
    """How far a stage is, and how long it will take yet."""
    left = progress.figures.get("remaining")
    return " · ".join(part for part in (progress.words, "" if left is None else f"{duration(left)} left") if part)


@dataclass
class _Row:
    """A running stage."""

    stage: Stage
    where: str
    log: Path
    since: float
    told: float
    """When a line about it was printed last."""
    progress: Callable[[], StageProgress]
    """How far it is by now."""
    spinner: Spinner = field(default_factory=lambda: Spinner("line"))


class Display:
    """A watcher that shows each running stage with its time, device and log, and how far it is, and lists what is through."""

    def __init__(
        self,
        run_dir: Path,
        console: Console | None = None,
        reader: LogReader = NO_READER,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console, self.reader, self.clock = console or Console(), reader, clock
        self.run_dir, self.total, self.through = run_dir, 0, 0
        self.reasons: dict[str, str] = {}
        self.running: dict[str, _Row] = {}
        self.live = Live(console=self.console, auto_refresh=False, transient=True) if self.console.is_terminal else None
        self.next_frame = -math.inf

    def __enter__(self) -> Display:
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self.live:
            self.live.update(Text(""), refresh=True)
            self.live.stop()

    def planned(self, ordered: Sequence[Stage], reasons: Mapping[str, str]) -> None:
        """All stages of the run, and why some of them must run."""
        self.total, self.reasons = len(ordered), dict(reasons)
        self._line(f"{self.total} {'stage' if self.total == 1 else 'stages'} in {self.run_dir}")

    def started(self, stage: Stage, log: Path, where: str) -> None:
        """`stage` runs from now on, at `where`, and writes to `log`."""
        self.running[stage.name] = _Row(stage, where, log, self.clock(), self.clock(), self.reader.follow(log))
        if not self.live:
            why = self.reasons.get(stage.name, FIRST)
            details = [*([] if why == FIRST else [why]), *([where] if where else []), f"log: {log}"]
            self._line(f"start    {stage.title} ({', '.join(details)})")

    def ended(self, result: StageResult) -> None:
        """A stage is through: list it."""
        self.running.pop(result.name, None)
        self.through += 1
        word, style = ("done", "green") if result.status == "done" else ("skipped", "dim")
        took = duration(result.seconds) if result.status == "done" else f"up to date, took {duration(result.seconds)}"
        self._line(f"{word:8} {result.title} ({took})", style)

    def lost(self, stage: Stage, why: str) -> None:
        """The place where `stage` ran is gone; it will start again."""
        self.running.pop(stage.name, None)
        self._line(f"{'lost':8} {stage.title} ({why}): starts again", "yellow")

    def failed(self, stage: Stage, why: str) -> None:
        """A stage failed; the error in the end says more, which may be hours away."""
        row = self.running.pop(stage.name)
        self._line(f"{'failed':8} {stage.title} ({why}; log: {row.log})", "red")

    def stopping(self) -> None:
        """What still runs is being ended."""
        names = ", ".join(row.stage.title for row in self.running.values())
        self._line(f"stopping {names}", "yellow")

    def refresh(self) -> None:
        """Draw the next frame if it is time, or print what is due; call it often."""
        now = self.clock()
        if now < self.next_frame:
            return
        self.next_frame = now + _REFRESH
        if self.live:
            self.live.update(self._frame(), refresh=True)
            return
        for row in self.running.values():
            if now - row.told >= _LINE_EVERY and (text := in_words(row.progress())):
                row.told = now
                self._line(f"{'progress':8} {row.stage.title}: {text}")

    def _frame(self) -> Group:
        rows = list(self.running.values())
        widths = [
            max((cell_len(text) for text in texts), default=0) for texts in zip(*map(self._texts, rows), strict=True)
        ]
        lines: list[RenderableType] = []
        for row in rows:
            line = Table.grid(padding=(0, 1))
            line.add_column(width=1)
            for width, style in zip(widths, ("", "cyan", "magenta"), strict=True):
                line.add_column(no_wrap=True, overflow="ellipsis", width=width or None, style=style)
            line.add_column(overflow="ellipsis", no_wrap=True, style="dim")
            line.add_row(row.spinner, *map(Text, self._texts(row)), Text(str(row.log.relative_to(self.run_dir))))
            lines.append(line)
            if text := in_words(row.progress()):
                lines.append(Text(f"  {text}", style="dim", no_wrap=True, overflow="ellipsis"))
        lines.append(Text(f"  {self.through} of {self.total} stages through", style="dim"))
        return Group(*lines)

    def _texts(self, row: _Row) -> tuple[str, str, str]:
        most = max(20, self.console.width - 34)  # the rest is for time, device and log
        return set_cell_size(row.stage.title, most).rstrip(), duration(self.clock() - row.since), row.where

    def _line(self, text: str, style: str = "") -> None:
        if self.live:
            self.live.update(self._frame())  # the frame under the new line must not show what it says is over
        # As text, not markup: a title or a path may hold brackets. Never wrapped: a line is for grep, too.
        self.console.print(Text(text, style=style), soft_wrap=True, highlight=False)
