"""`axolotl paft inspect`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from paft_plugin.commands import FOLDER, PATH
from paft_plugin.errors import PaftError, collecting
from paft_plugin.schema import suggestion

if TYPE_CHECKING:
    from rich.console import Console

    from paft_plugin.inspection.inspect import OnEntries


@click.command()
@click.argument("deltas", metavar="NAME=DELTA...", nargs=-1, required=True)
@click.option("--base", metavar="BASE", type=PATH, required=True, help="Folder of the base model.")
@click.option(
    "--output-dir", metavar="DIR", type=FOLDER, required=True, help="Where inspection.json, the page and the plots go."
)
@click.option(
    "--threshold",
    "thresholds",
    type=float,
    multiple=True,
    help="Count entries with |δ| up to this; may be repeated. [1e-6, 1e-5, 1e-4, 1e-3]",
)
@click.option(
    "--density",
    "densities",
    type=float,
    multiple=True,
    help="Share of entries that TIES or DARE would keep; may be repeated. [0.1, 0.2, 0.5; 1 always]",
)
@click.option(
    "--fused",
    metavar="NAME",
    multiple=True,
    help="One of three deltas or more that are fused together, and elect signs; may be repeated. [all but dense twins]",
)
@click.option("--no-pairs", is_flag=True, help="Look at each delta alone.")
@click.option("--no-plots", is_flag=True, help="Only inspection.json and the table: no page, no plots.")
def inspect(
    deltas: tuple[str, ...],
    base: Path,
    output_dir: Path,
    thresholds: tuple[float, ...],
    densities: tuple[float, ...],
    fused: tuple[str, ...],
    no_pairs: bool,
    no_plots: bool,
) -> None:
    """Show how sparse deltas are, where, and how they interfere.

    Each NAME=DELTA gives a name to the folder of an adapter or a model that was trained from BASE. Weights are read in blocks,
    so a large model needs no more memory than a small one.
    """
    from rich.console import Console

    from paft_plugin.inspection.inspect import DENSITIES, THRESHOLDS, Settings, inspect_deltas, problems_of
    from paft_plugin.inspection.inspected import check_writable, write_inspection
    from paft_plugin.inspection.tables import terminal_tables
    from paft_plugin.machine import reuse_freed_memory

    problems, branches = _named(deltas)
    problems += [
        f"--fused {name}: no such delta. {suggestion(name, list(branches))}" for name in fused if name not in branches
    ]
    with collecting(problems):
        settings = Settings(thresholds or THRESHOLDS, densities or DENSITIES, not no_pairs, fused)
    if problems:
        raise PaftError(problems + problems_of(base, branches))
    check_writable(output_dir)
    reuse_freed_memory()
    with _entries_done(Console(stderr=True)) as progress:
        inspection = inspect_deltas(base, branches, settings, progress=progress)
    written = [write_inspection(inspection, output_dir)]
    if not no_plots:
        from paft_plugin.inspection.plots import write_plots
        from paft_plugin.report.inspection_page import write_inspection_page

        written += [write_inspection_page(output_dir), *write_plots(inspection, output_dir)]
    console = Console()
    for table in terminal_tables(inspection):
        console.print(table)
    for one, other in inspection.apart:
        click.echo(f"{one} and {other} change no tensor in common: neither can get into the other's way.")
    click.echo(f"Wrote {', '.join(file.name for file in written)} into {output_dir}.")


def _named(deltas: tuple[str, ...]) -> tuple[list[str], dict[str, Path]]:
    """What is wrong with the arguments, and name → folder."""
    problems: list[str] = []
    branches: dict[str, Path] = {}
    for given in deltas:
        name, equals, folder = given.partition("=")
        if not (name and equals and folder):
            problems.append(
                f"{given}: not of the form NAME=DELTA. Write a name before the folder, such as sft=out/sft."
            )
        elif name in branches:
            problems.append(f"{given}: the name {name} is given twice. Give every delta a name of its own.")
        else:
            branches[name] = Path(folder)
    return problems, branches


@contextmanager
def _entries_done(console: Console) -> Iterator[OnEntries]:
    """While the context lasts, a bar on the console (if that is a terminal) that moves with each call of what it yields."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("Inspecting"), BarColumn(), TextColumn("{task.percentage:.0f} %"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("inspect", total=None)

        def move(done: int, of: int) -> None:
            bar.update(task, advance=done, total=of)

        yield move
