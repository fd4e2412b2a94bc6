"""`axolotl paft recipe`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from paft_plugin.fusion.recipe.methods import MEANINGS, METHODS, extra_names


def extra_options(command: Callable[..., None]) -> Callable[..., None]:
    """An option for each parameter that few methods take, named as mergekit names it."""
    for name in reversed(extra_names()):
        takes = [method for method in METHODS.values() for extra in method.extras if extra.name == name]
        values = [extra.default for method in takes for extra in method.extras if extra.name == name]
        default, defaults = values[0], " or ".join(dict.fromkeys(map(str, values)))
        option = f"--{name.replace('_', '-')}"
        command = click.option(
            f"{option}/--no-{option[2:]}" if isinstance(default, bool) else option,
            name,
            type=type(default),
            default=None,
            help=f"For {', '.join(method.name for method in takes)}: {MEANINGS[name]}. [{defaults}]",
        )(command)
    return command


@click.command()
@click.option("--base", type=click.Path(path_type=Path), required=True, help="Folder of the base model.")
@click.option("--sft", type=click.Path(path_type=Path), required=True, help="The SFT branch: adapter or model.")
@click.option(
    "--preference", type=click.Path(path_type=Path), required=True, help="The preference branch: adapter or model."
)
@click.option("--method", required=True, metavar="METHOD", help=f"Merge method: {', '.join(METHODS)}.")
@click.option("--density", type=float, help="Share of each delta's entries to keep. [ties: 0.2, DARE: 0.5]")
@click.option("--density-sft", type=float, help="The same for the SFT branch alone.")
@click.option("--density-preference", type=float, help="The same for the preference branch alone.")
@click.option("--weight-sft", type=float, help="Weight of the SFT branch. [1, linear: 0.5]")
@click.option("--weight-preference", type=float, help="Weight of the preference branch. [1, linear: 0.5]")
@click.option(
    "--filter",
    "filters",
    multiple=True,
    metavar="NAME:SETTING=VALUE",
    help="Another density or weight for the tensors with NAME in their names, such as mlp:density-sft=0.1; may be "
    "repeated, the first that fits counts.",
)
@click.option("--scale", type=float, help="Factor on the merged delta (mergekit's lambda). [1]")
@click.option(
    "--normalize/--no-normalize",
    default=None,
    help="Divide each entry by the weights that take part. [ties without weights: yes, otherwise no]",
)
@extra_options
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the methods that drop by chance.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="The recipe's file, such as ties.yml.")
@click.option(
    "--merged", type=click.Path(path_type=Path), help="Where the merged model goes. [OUTPUT without its suffix]"
)
@click.option(
    "--materialize",
    is_flag=True,
    help="Write adapters as whole models beside the recipe, so that mergekit needs no flags for them.",
)
def recipe(**options: Any) -> None:
    """Write a mergekit recipe that fuses two branches of one base model; its header holds the command that runs it."""
    import shlex

    from paft_plugin.fusion.recipe.materialize import materialized
    from paft_plugin.fusion.recipe.settings import RecipeRequest
    from paft_plugin.fusion.recipe.write import merge_command, write_recipe

    given = {name: options.pop(name) for name in extra_names()}
    extras = {name: value for name, value in given.items() if value is not None}
    written = write_recipe(RecipeRequest(**options, extras=extras))
    for warning in written.warnings:
        click.echo(f"Warning: {warning}", err=True)
    for folder, size in materialized(written).items():
        click.echo(f"Whole model: {folder} ({size / 1e9:.2f} GB). Delete it after the merge.")
    click.echo(f"Wrote {written.file}. Run it with:\n{shlex.join(merge_command(written))}")
