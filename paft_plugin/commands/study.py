"""`axolotl paft study`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("config", type=click.Path(path_type=Path), metavar="STUDY.YML", required=False)
@click.option("--dry-run", is_flag=True, help="Show the arms, and of every seed what would run.")
@click.option(
    "--recompute",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    metavar="DIR",
    help="Write every table and figure of the study in DIR anew, from its small files alone.",
)
def study(config: Path | None, dry_run: bool, recompute: Path | None) -> None:
    """Compare ways of combining skill and preference over seeds.

    With controls, and the same budget for each way, as STUDY.YML says. Every seed is a run of its own. Interrupted, killed or
    changed, the same command goes on. `axolotl paft demo --study` writes a STUDY.YML to begin with.
    """
    from rich.console import Console

    from paft_plugin.study import run

    if (config is None) == (recompute is None):
        raise click.UsageError("Give STUDY.YML, or --recompute DIR.")
    if recompute is not None:
        run.recompute(recompute, Console())
    elif config is not None and dry_run:
        run.show_study(config, Console())
    elif config is not None:
        run.run_study(config, Console())
