"""`axolotl paft diagnose`."""

from __future__ import annotations

from pathlib import Path

import click

from paft_plugin.commands import PATH, json_option

FINDINGS = 3
"""Exit code. 1 is what Python ends with after a crash and 2 is a mistake in the command or its input: neither must look like a
diagnosis."""


@click.command()
@click.argument("folder", metavar="DIR", type=PATH)
@click.option(
    "--sft",
    metavar="NAME",
    multiple=True,
    help="An SFT branch that is fused; may be repeated. [as the run has it; sft-l1]",
)
@click.option(
    "--preference",
    "preferences",
    metavar="NAME",
    multiple=True,
    help="A preference branch; may be repeated. [as the run has it; all that are not SFT]",
)
@click.option(
    "--twin",
    "twins",
    metavar="[SFT=]NAME",
    multiple=True,
    help="The dense twin of an SFT branch (of the first, unless said): the same training without the penalty; may be repeated. "
    "[as the run has it; sft beside sft-l1]",
)
@json_option("the diagnosis")
@click.pass_context
def diagnose(
    ctx: click.Context,
    folder: Path,
    sft: tuple[str, ...],
    preferences: tuple[str, ...],
    twins: tuple[str, ...],
    json_file: Path | None,
) -> None:
    """Look for the ways in which PAFT fails.

    Dense-sparse mismatch, excessive L1, dominance, one branch inside another. DIR is a run's folder, or what `axolotl paft
    inspect` wrote. Each finding comes with evidence, thresholds, how sure it is, and what to change to what.

    \b
    Exit codes: 0  nothing was found
                2  wrong usage or input
                3  something was found
    """
    from rich.console import Console

    from paft_plugin.files import write_json
    from paft_plugin.inspection.diagnosis import diagnose as look
    from paft_plugin.inspection.diagnosis.text import as_text

    named = {branch: twin for branch, _, twin in (each.rpartition("=") for each in twins)}
    diagnosis = look(folder, sft, preferences, named)
    if json_file is not None:
        write_json(json_file, diagnosis.as_json())
    Console().print(as_text(diagnosis))
    if not diagnosis.healthy:
        ctx.exit(FINDINGS)
