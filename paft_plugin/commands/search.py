"""`axolotl paft search`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("config", type=click.Path(path_type=Path), metavar="PAFT.YML")
@click.option("--trials", type=click.IntRange(min=1), help="How many in all, over every run. [the file's, 40]")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), help="Seconds to begin trials in. [the file's]")
def search(config: Path, trials: int | None, timeout: float | None) -> None:
    """Find the merge settings that score best on validation items.

    Method, densities, weights and scale, as PAFT.YML says. One objective gives the best recipe, more give the Pareto front.
    An interrupted search goes on with the same command.
    """
    from rich.console import Console

    from paft_plugin.pipeline.arms import search_request
    from paft_plugin.search.run import require_extra, run_search

    require_extra()
    outcome = run_search(search_request(config), Console(), trials=trials, timeout=timeout)
    click.echo(f"Everything is in {outcome.folder}: README.md explains it, front.png shows it.")
