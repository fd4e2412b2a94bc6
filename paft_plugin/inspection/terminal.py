"""An inspection in the terminal: a bar while it runs, then its tables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from paft_plugin.inspection.inspected import Inspection
from paft_plugin.inspection.tables import pair_table, size_table, sparsity_table, ties_table
from paft_plugin.tables import Table

if TYPE_CHECKING:
    from paft_plugin.inspection.inspect import OnEntries


@contextmanager
def entries_done(console: Console) -> Iterator[OnEntries]:
    """While the context lasts, a bar on the console (if that is a terminal) that moves with each call of what it yields."""
    columns = (TextColumn("Inspecting"), BarColumn(), TextColumn("{task.percentage:.0f} %"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("inspect", total=None)

        def move(done: int, of: int) -> None:
            bar.update(task, advance=done, total=of)

        yield move


def terminal_tables(inspection: Inspection) -> list[Table]:
    """A column for each delta, then a row for each pair, then what TIES makes of each pair."""
    tables = [sparsity_table(inspection).turned(), size_table(inspection).turned(), pair_table(inspection)]
    return [table for table in (*tables, ties_table(inspection)) if table is not None]
