"""A bar that shows how far an inspection is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

OnEntries = Callable[[int, int], None]
"""Called with the entries done since the last call, and all that there are."""


@contextmanager
def entries_done(console: Console) -> Iterator[OnEntries]:
    """While the context lasts, a bar on the console (if that is a terminal) that moves with each call of what it yields."""
    columns = (TextColumn("Inspecting"), BarColumn(), TextColumn("{task.percentage:.0f} %"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("inspect", total=None)

        def move(done: int, of: int) -> None:
            bar.update(task, advance=done, total=of)

        yield move
