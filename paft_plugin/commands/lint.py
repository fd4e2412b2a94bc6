"""`axolotl paft lint`."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from paft_plugin.commands import PATH, json_option
from paft_plugin.errors import BAD_INPUT, quietly


@click.command()
@click.argument("recipes", metavar="RECIPE...", nargs=-1, type=PATH)
@click.option("--no-weights", is_flag=True, help="Read no weights: quick, but blind to what the deltas hold.")
@json_option("the findings")
@click.option("--explain", metavar="CODE", help="Say what a code such as PAFT102 means (`all`: every code), and stop.")
@click.pass_context
def lint(
    ctx: click.Context, recipes: tuple[Path, ...], no_weights: bool, json_file: Path | None, explain: str | None
) -> None:
    """Find what is wrong, or not as it seems, in mergekit recipes.

    Any mergekit YAML will do, not only ours. Folders that it names are looked at where they are on this disk, weights
    included. Errors exit with 2, warnings with 0.
    """
    width = shutil.get_terminal_size().columns
    if explain is not None:
        from paft_plugin.fusion.lint.findings import explain_rules

        click.echo("\n".join(explain_rules(explain, width)))
        return
    if not recipes:
        raise click.UsageError("Missing argument 'RECIPE...'.")

    from paft_plugin.fusion.lint.findings import LintFile, as_text, errors, summary
    from paft_plugin.fusion.lint.linter import lint_recipe, method_in
    from paft_plugin.fusion.recipe.methods import how_it_trims

    with quietly():
        findings = {file: lint_recipe(file, read_weights=not no_weights) for file in recipes}
    for file, found in findings.items():
        for line in as_text(found, width):
            click.echo(line)
        if said := how_it_trims(method_in(file)):
            click.echo(f"{file}: {said}")
    click.echo(summary(findings, not no_weights))
    if json_file is not None:
        LintFile.of(findings, not no_weights).write(json_file)
    if any(errors(found) for found in findings.values()):
        ctx.exit(BAD_INPUT)
