"""`axolotl paft run`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("config", type=click.Path(path_type=Path), metavar="PAFT.YML")
@click.option(
    "--dry-run", is_flag=True, help="Show the stages, why each would run, their commands and the disk they take."
)
@click.option(
    "--sequential", is_flag=True, help="Also the baseline: SFT without penalty, then preference training on it."
)
@click.option(
    "--arms",
    metavar="ARM,…",
    help="The arms to make and score: base, sft, sft-l1, dpo, sequential, paft-ties, 'parallel-*' … [the file's]",
)
def run(config: Path, dry_run: bool, sequential: bool, arms: str | None) -> None:
    """Train, inspect, fuse, evaluate and report as PAFT.YML says.

    The branches train in parallel. Interrupted, killed or changed, it goes on: what is up to date is kept, what is not says why.
    """
    from rich.console import Console

    from paft_plugin.pipeline.run import run_pipeline, show_plan

    chosen = [arm.strip() for arm in arms.split(",") if arm.strip()] if arms else []
    if dry_run:
        show_plan(config, Console(), arms=chosen, sequential=sequential)
    else:
        run_pipeline(config, Console(), arms=chosen, sequential=sequential)
