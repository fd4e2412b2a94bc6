"""What a person sees of a run: while stages run, a live display or plain lines; from outside, its status as a table."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from paft_plugin.runner.executor import StageResult, Watcher
from paft_plugin.runner.logs import GO_ON, NO_READER, LogReader, StageProgress
from paft_plugin.runner.markers import FIRST
from paft_plugin.runner.stages import Stage
from paft_plugin.runner.watch.status import RunStatus, StageState, StageStatus, StatusReader

_REFRESH = 0.2  # seconds between two frames
_LINE_EVERY = 60.0  # seconds between two lines on one stage, off a terminal
_LOOK_EVERY = 1.0  # seconds between two looks at a run from outside
_STYLES: dict[StageState, str] = {
    "running": "cyan",
    "done": "green",
    "up to date": "dim",
    "failed": "red",
    "waiting": "dim",
    "stopped": "yellow",
    "gone": "yellow",
}
_GO_ON = "Finished stages are kept: run the same command again to go on."
_SAID = {
    "starting": "is starting",
    "running": "runs",
    "ending": "was killed; processes that it started have not ended yet",
    "finished": "has finished",
    "failed": "failed",
    "interrupted": "was interrupted",
    "killed": "was killed",
}


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


class Display(Watcher):
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

    def __exit__(self, _kind: object, _error: BaseException | None, _where: object) -> None:
        if self.live:
            self.live.update(Text(""), refresh=True)
            self.live.stop()

    def planned(self, ordered: Sequence[Stage], reasons: Mapping[str, str]) -> None:
        self.total, self.reasons = len(ordered), dict(reasons)
        self._line(f"{self.total} {'stage' if self.total == 1 else 'stages'} in {self.run_dir}")

    def started(self, stage: Stage, log: Path, where: str) -> None:
        self.running[stage.name] = _Row(stage, where, log, self.clock(), self.clock(), self.reader.follow(log))
        if not self.live:
            why = self.reasons.get(stage.name, FIRST)
            details = [*([] if why == FIRST else [why]), *([where] if where else []), f"log: {log}"]
            self._line(f"start    {stage.title} ({', '.join(details)})")

    def ended(self, result: StageResult) -> None:
        self.running.pop(result.name, None)
        self.through += 1
        word, style = ("done", "green") if result.status == "done" else ("skipped", "dim")
        took = duration(result.seconds) if result.status == "done" else f"up to date, took {duration(result.seconds)}"
        self._line(f"{word:8} {result.title} ({took})", style)

    def lost(self, stage: Stage, why: str) -> None:
        self.running.pop(stage.name, None)
        self._line(f"{'lost':8} {stage.title} ({why}): starts again", "yellow")

    def failed(self, stage: Stage, why: str) -> None:
        row = self.running.pop(stage.name)
        self._line(f"{'failed':8} {stage.title} ({why}; log: {row.log})", "red")

    def stopping(self) -> None:
        names = ", ".join(row.stage.title for row in self.running.values())
        self._line(f"stopping {names}", "yellow")

    def refresh(self) -> None:
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


# --- from outside -------------------------------------------------------------------------------------------------------


def show(status: RunStatus, console: Console) -> RunStatus:
    """Print a status and return it."""
    console.print(view(status), soft_wrap=False)
    return status


def show_until_ended(reader: StatusReader, console: Console) -> RunStatus:
    """Show a run's status until it has ended or Ctrl-C, off a terminal whenever a stage's state changes; return the last."""
    status = reader.read()
    try:
        if console.is_terminal:
            with Live(view(status), console=console, auto_refresh=False) as live:
                while status.under_way:
                    time.sleep(_LOOK_EVERY)
                    status = reader.read()
                    live.update(view(status), refresh=True)
            return status
        show(status, console)
        while status.under_way:
            time.sleep(_LOOK_EVERY)
            before, status = status, reader.read()
            if _states(status) != _states(before):
                show(status, console)
    except KeyboardInterrupt:  # of the looking alone: the run is another process
        pass
    return status


def _states(status: RunStatus) -> list[str]:
    return [status.state, *(stage.state for stage in status.stages)]


def view(status: RunStatus) -> Group:
    """A whole status, readable at 80 columns."""
    parts: list[RenderableType] = [Text(_headline(status))]
    if status.stages:
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
        table.add_column("Stage", overflow="fold")
        table.add_column("State", no_wrap=True)
        table.add_column("Time", no_wrap=True, justify="right")
        table.add_column("")
        for stage in status.stages:
            took = "" if stage.seconds is None else duration(stage.seconds)
            state = Text(stage.state, style=_STYLES[stage.state])
            table.add_row(Text(stage.name), state, took, Text(_detail(stage)))
        parts += [Text(""), table]
    failed = [stage for stage in status.stages if stage.state == "failed"]
    parts += [Text(f"\n{stage.failure}") for stage in failed]
    if status.reason and not failed:
        parts.append(Text(f"\n{status.reason}"))
    if not status.under_way and status.state != "finished":
        parts.append(Text(f"\n{GO_ON if failed else _GO_ON}"))
    return Group(*parts)


def _headline(status: RunStatus) -> str:
    since = f" for {duration(status.seconds)}" if status.seconds is not None and status.under_way else ""
    took = f" after {duration(status.seconds)}" if status.seconds is not None and not status.under_way else ""
    process = f" (process {status.pid}{f' on {status.host}' if status.host else ''})" if status.under_way else ""
    through = sum(stage.state in ("done", "up to date") for stage in status.stages)
    count = f": {through} of {len(status.stages)} stages through" if status.stages else ""
    return f"The run in {status.run_dir} {_SAID[status.state]}{since or took}{process}{count}."


def _detail(stage: StageStatus) -> str:
    if stage.state == "running":
        far = in_words(StageProgress(stage.words, stage.metrics))
        return " · ".join(part for part in (stage.where, far) if part)
    if stage.state == "gone":
        return "its marker has been removed: it will run again"
    return " · ".join(part for part in (stage.reason, stage.words) if part)
