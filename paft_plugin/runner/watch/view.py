"""A run's status as a person sees it: a table, what failed, how to go on; once, or again and again until it has ended."""

from __future__ import annotations

import time

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from paft_plugin.runner.logs import GO_ON, StageProgress
from paft_plugin.runner.watch.display import duration, in_words
from paft_plugin.runner.watch.status import RunStatus, StageState, StageStatus, StatusReader

_EVERY = 1.0  # seconds between two looks
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
                    time.sleep(_EVERY)
                    status = reader.read()
                    live.update(view(status), refresh=True)
            return status
        show(status, console)
        while status.under_way:
            time.sleep(_EVERY)
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
