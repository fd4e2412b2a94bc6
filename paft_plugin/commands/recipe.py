"""`axolotl paft recipe`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import click

from paft_plugin.commands import PATH, Decorator
from paft_plugin.fusion.recipe.methods import MEANINGS, METHODS, extra_names
from paft_plugin.fusion.recipe.settings import RecipeSettings


def setting_options(command: Callable[..., None]) -> Callable[..., None]:
    """An option for each field of `RecipeSettings`, and for each parameter that few methods take."""
    options = [_of_setting(name) for name in RecipeSettings.model_fields if name != "extras"]
    for option in reversed([*options, *map(_of_extra, extra_names())]):
        command = option(command)
    return command


def _of_setting(name: str) -> Decorator:
    field = RecipeSettings.model_fields[name]
    if name == "filter":
        return click.option("--filter", multiple=True, metavar="NAME:SETTING=VALUE", help=field.description)
    (kind, _none) = get_args(field.annotation)
    return _option(name, kind, field.description or "")


def _of_extra(name: str) -> Decorator:
    defaults = {method.name: extra.default for method in METHODS.values() if (extra := method.extra_called(name))}
    shown = " or ".join(dict.fromkeys(map(str, defaults.values())))
    kind = type(next(iter(defaults.values())))
    return _option(name, kind, f"For {', '.join(defaults)}: {MEANINGS[name]}. [{shown}]")


def _option(name: str, kind: type, description: str) -> Decorator:
    option = f"--{name.replace('_', '-')}"
    both = f"{option}/--no-{option[2:]}" if kind is bool else option
    return click.option(both, name, type=kind, default=None, help=description)


@click.command()
@click.option("--base", type=PATH, required=True, help="Folder of the base model.")
@click.option("--sft", type=PATH, required=True, help="The SFT branch: adapter or model.")
@click.option("--preference", type=PATH, required=True, help="The preference branch: adapter or model.")
@click.option("--method", required=True, metavar="METHOD", help=f"Merge method: {', '.join(METHODS)}.")
@setting_options
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the methods that drop by chance.")
@click.option("--output", type=PATH, required=True, help="The recipe's file, such as ties.yml.")
@click.option("--merged", type=PATH, help="Where the merged model goes. [OUTPUT without its suffix]")
@click.option(
    "--materialize",
    is_flag=True,
    help="Write adapters as whole models beside the recipe, so that mergekit needs no flags for them.",
)
def recipe(**options: Any) -> None:
    """Write a mergekit recipe that fuses two branches of one base model; its header holds the command that runs it."""
    import shlex

    from paft_plugin.fusion.recipe.render import merge_command
    from paft_plugin.fusion.recipe.write import RecipeRequest, write_recipe

    given = {name: options.pop(name) for name in RecipeSettings.model_fields if name != "extras"}
    extras = {name: value for name in extra_names() if (value := options.pop(name)) is not None}
    settings, unread = RecipeSettings.read({**given, "extras": extras})
    written = write_recipe(RecipeRequest(**options, settings=settings), unread)
    for warning in written.warnings:
        click.echo(f"Warning: {warning}", err=True)
    for folder in (branch.whole for branch in written.branches if branch.whole is not None):
        size = sum(file.stat().st_size for file in folder.iterdir())
        click.echo(f"Whole model: {folder} ({size / 1e9:.2f} GB). Delete it after the merge.")
    click.echo(f"Wrote {written.file}. Run it with:\n{shlex.join(merge_command(written))}")
