"""`axolotl paft report`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
def report(folder: Path) -> None:
    """Write the report, the results and the model cards of a run.

    The run in DIR gets results.json, README.md and its report: one HTML file that needs no network, with the arm to use and
    what it costs, the evidence, and how to repeat it; and each fused model gets its model card (README.md).

    Of a folder that holds an inspection alone, it writes the page of that.
    """
    from paft_plugin.report.collect import write_results
    from paft_plugin.report.model_card import write_model_cards
    from paft_plugin.report.run_report import write_report

    write_results(folder)
    page = write_report(folder)
    for card in write_model_cards(folder):
        click.echo(f"Wrote {card}.")
    click.echo(f"Wrote {page}: open it in a browser.")
