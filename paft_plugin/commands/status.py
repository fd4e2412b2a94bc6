"""`axolotl paft status DIR`."""

from __future__ import annotations

from pathlib import Path

import click

from paft_plugin.commands import PATH, json_option


@click.command()
@click.argument("run_dir", metavar="DIR", type=PATH)
@click.option("--follow", is_flag=True, help="Go on showing it until the run has ended.")
@json_option("it")
def status(run_dir: Path, follow: bool, json_file: Path | None) -> None:
    """Tell where the run in DIR stands.

    Each stage's state and time, how far trainings are, why one failed. For a run under way, from another shell, and for one
    that has ended, however it did. Only reads.
    """
    from rich.console import Console

    from paft_plugin.pipeline.stage_logs import STAGE_LOGS
    from paft_plugin.runner.watch.display import show, show_until_ended
    from paft_plugin.runner.watch.status import StatusReader

    reader, console = StatusReader(run_dir, STAGE_LOGS, "Name the output_dir of a paft.yml."), Console()
    found = show_until_ended(reader, console) if follow else show(reader.read(), console)
    if json_file is not None:
        found.write(json_file)
