"""`python -m paft_plugin.penalty.benchmark`: what the penalty costs on this machine, beside the bars it is held to."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console

from paft_plugin.figures import as_json, as_table
from paft_plugin.files import write_json
from paft_plugin.penalty.benchmark.rows import ROWS
from paft_plugin.penalty.benchmark.steps import FULL, QUICK
from paft_plugin.penalty.record import PACKAGES


@click.command()
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="JSON file to write.")
@click.option("--quick", is_flag=True, help="Fewer tokens and repeats: to see that it runs, not to compare.")
@click.option("--only", type=click.Choice(list(ROWS)), multiple=True, help="A row to run; all by default.")
def command(output: Path | None, quick: bool, only: tuple[str, ...]) -> None:
    """Measure what the L1 penalty costs in time and memory."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # models and tokens are made on the spot
    scale = QUICK if quick else FULL
    rows = []
    for name in only or ROWS:
        click.echo(f"{name} …", err=True)
        rows.append(ROWS[name](scale))
        if output:
            # After every row: what was measured so far outlives an interruption.
            write_json(output, as_json(rows, PACKAGES, {"quick": quick, "scale": asdict(scale)}))
    Console().print(as_table(rows))
    for row in rows:
        click.echo(f"{row.name}: {row.note}")


if __name__ == "__main__":
    command()
