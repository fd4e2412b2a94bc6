"""`axolotl paft report`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
def report(folder: Path) -> None:
    """Write the report of the run in DIR, one HTML file that needs no network: which arm to use and what it costs, the
    evidence, and how to repeat it.

    Of a folder that holds an inspection alone, it writes the page of that.
    """
    from paft_plugin.report.run_report import write_report

    click.echo(f"Wrote {write_report(folder)}.")
