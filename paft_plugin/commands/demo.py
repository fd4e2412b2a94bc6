"""`axolotl paft demo`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option(
    "--output-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("paft-demo"),
    show_default=True,
    help="Where everything goes; a run that was interrupted goes on there.",
)
@click.option("--quick", is_flag=True, help="Fewer steps and fewer arms.")
@click.option(
    "--branches",
    type=click.IntRange(2, 3),
    default=2,
    show_default=True,
    help="2: a skill and a preference; 3: two skills and a preference.",
)
def demo(output_dir: Path, quick: bool, branches: int) -> None:
    """Take a small shipped base model down the whole road: train the branches, fuse them, score every arm.

    Needs no network, no GPU and no account.
    """
    from rich.console import Console

    from paft_plugin.demo.configs import FULL_DEMOS, QUICK_DEMOS
    from paft_plugin.demo.run import run_demo

    run_demo((QUICK_DEMOS if quick else FULL_DEMOS)[branches], output_dir, Console())
    click.echo(f"Everything is in {output_dir}: README.md explains it, results.json has the numbers.")
