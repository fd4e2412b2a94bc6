"""`axolotl paft fuse`."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Any

import click

from paft_plugin.commands import PATH
from paft_plugin.commands.merge import linted, merge
from paft_plugin.commands.recipe import recipe
from paft_plugin.errors import print_warnings
from paft_plugin.files import LINT_FILE, RECIPE_FILE, write_text
from paft_plugin.reading import MOST_YAML_BYTES, read_text


@click.command()
@click.argument("out", type=PATH)
@click.option(
    "--recipe",
    "given",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Fuse by this recipe, any mergekit YAML, instead of writing one from the options of `axolotl paft recipe`.",
)
@click.pass_context
def fuse(
    ctx: click.Context,
    out: Path,
    given: Path | None,
    seed: int | None,
    device: str,
    out_shard_size: str,
    quiet: bool,
    **options: Any,
) -> None:
    """Fuse branches of one base model by a recipe that is linted.

    As `axolotl paft recipe`, `lint` and `merge` in one go. The new folder OUT gets the merged model, with recipe.yml and
    lint.json beside it. Errors of the linter stop the merge.
    """
    from paft_plugin.fusion.merge import open_fusion, reuse_freed_memory
    from paft_plugin.fusion.merge.write import fill_folder
    from paft_plugin.fusion.merge.writer import whole_folder

    _check_options(ctx, given)
    reuse_freed_memory()
    file = out / RECIPE_FILE
    with whole_folder(out, beside=(RECIPE_FILE, LINT_FILE)) as folder:
        if given is None:
            ctx.invoke(recipe, **options, seed=seed or 0, output=file, merged=out, materialize=False)
        else:
            write_text(file, read_text(given, MOST_YAML_BYTES))
        findings = linted(file, out / LINT_FILE)
        fusion = open_fusion(file, seed, device)
        notes = fill_folder(fusion, folder, out.absolute().name, out_shard_size, findings, quiet)
    print_warnings(notes)
    click.echo(f"Fused into {out}.")


def _check_options(ctx: click.Context, given: Path | None) -> None:
    """Either a recipe is given, or what one is written from."""
    said = [option.opts[0] for option in _OF_RECIPE if ctx.params[str(option.name)] not in (None, ())]
    branches = () if "--branch" in said else ("--sft", "--preference")
    needed = [option.opts[0] for option in _OF_RECIPE if option.required or option.opts[0] in branches]
    missing = [option for option in needed if option not in said]
    if given is None and missing:
        raise click.UsageError(f"Missing {', '.join(missing)} (or a --recipe).")
    if given is not None and said:
        raise click.UsageError(f"{', '.join(said)}: for a recipe that is written here. Leave out that, or --recipe.")


def _optional(option: click.Parameter) -> click.Parameter:
    option = copy(option)
    option.required = False
    return option


_OF_RECIPE = [option for option in recipe.params if option.name not in ("seed", "output", "merged", "materialize")]
fuse.params += [
    *map(_optional, _OF_RECIPE),
    *(option for option in merge.params if option.name in ("seed", "device", "out_shard_size", "quiet")),
]
