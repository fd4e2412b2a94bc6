"""What a person sees while stages run: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from paft_plugin.pipeline.stages import Stage
from paft_plugin.pipeline.watch import StageResult

_REFRESH = 0.2  # seconds between two frames


def duration(seconds: float) -> str:
    """Seconds as `4.2 s`, `3:07` or `1:02:33`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Progress:
    """Names each running stage with its time and its log, and lists those that are through."""

    def __init__(self, run_dir: Path, console: Console | None = None) -> None:
        self.console = console or Console()
        self.run_dir, self.total, self.through = run_dir, 0, 0
        self.running: dict[str, tuple[Stage, float, Path, Spinner]] = {}
        self.live = Live(console=self.console, auto_refresh=False, transient=True) if self.console.is_terminal else None
        self.next_frame = 0.0

    def __enter__(self) -> Progress:
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
        self.total = len(ordered)
        self._line(f"{self.total} {'stage' if self.total == 1 else 'stages'} in {self.run_dir}")

    def started(self, stage: Stage, log: Path, where: str) -> None:
        """`stage` runs from now on and writes to `log`."""
        self.running[stage.name] = (stage, time.monotonic(), log, Spinner("line"))
        if not self.live:
            self._line(f"start    {stage.title} (log: {log})")

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
        """A stage failed; the error that follows says more."""
        self.running.pop(stage.name, None)
        self._line(f"{'failed':8} {stage.title}", "red")

    def stopping(self) -> None:
        """What still runs is being ended."""
        names = ", ".join(stage.title for stage, *_ in self.running.values())
        self._line(f"stopping {names}", "yellow")

    def refresh(self) -> None:
        """Draw the next frame if it is time; call it often."""
        if self.live and time.monotonic() >= self.next_frame:
            self.next_frame = time.monotonic() + _REFRESH
            self.live.update(self._table(), refresh=True)

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 1))
        for _ in range(3):
            table.add_column(no_wrap=True)
        table.add_column(overflow="ellipsis", no_wrap=True, style="dim")
        for stage, since, log, spinner in self.running.values():
            elapsed = Text(duration(time.monotonic() - since), style="cyan")
            table.add_row(spinner, Text(stage.title), elapsed, Text(str(log.relative_to(self.run_dir))))
        table.add_row("", Text(f"{self.through} of {self.total} stages through", style="dim"))
        return table

    def _line(self, text: str, style: str = "") -> None:
        if self.live:
            self.live.update(self._table())  # the frame under the new line must not show what it says is over
        # As text, not markup: a title or a path may hold brackets. Never wrapped: a line is for grep, too.
        self.console.print(Text(text, style=style), soft_wrap=True, highlight=False)
