"""`axolotl paft demo`."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

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
@click.option(
    "--study", is_flag=True, help="Only write this world as a study over several seeds, for `axolotl paft study`."
)
def demo(output_dir: Path, quick: bool, branches: int, study: bool) -> None:
    """Take a small shipped model down the whole road.

    Trains the branches, fuses them and scores every arm. Needs no network, no GPU and no account.
    """
    if study:
        _write_study(output_dir, quick)
        return
    from rich.console import Console

    from paft_plugin.demo.configs import FULL_DEMOS, QUICK_DEMOS
    from paft_plugin.demo.run import run_demo

    run_demo((QUICK_DEMOS if quick else FULL_DEMOS)[branches], output_dir, Console())
    click.echo(f"Everything is in {output_dir}: README.md explains it, results.json has the numbers.")


def _write_study(output_dir: Path, quick: bool) -> None:
    from paft_plugin.demo.study import FULL_STUDY, QUICK_STUDY, write_study

    file = write_study(QUICK_STUDY if quick else FULL_STUDY, output_dir)
    click.echo(f"Run it with: axolotl paft study {quote(str(file))}")
