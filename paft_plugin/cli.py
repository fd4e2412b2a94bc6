"""`axolotl paft …`: arguments and printing only; whatever is heavy is imported inside the commands."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

import click

from paft_plugin import __version__
from paft_plugin.errors import PaftError
from paft_plugin.fusion.methods import METHODS

BAD_INPUT = 2
INTERRUPTED = 130


class PaftGroup(click.Group):
    """A group whose commands turn a user's mistake into one clear message and an exit code, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Interrupted. What was finished is kept: run the same command again to go on.", err=True)
            ctx.exit(INTERRUPTED)
        except PaftError as error:
            self._explain(ctx, error.problems)
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            self._explain(ctx, [f"{error.strerror or error}{where}"])

    def _explain(self, ctx: click.Context, problems: list[str]) -> None:
        if ctx.params.get("debug"):
            traceback.print_exc()
        for problem in problems:
            click.echo(f"Error: {problem}", err=True)
        ctx.exit(BAD_INPUT)


@click.group(cls=PaftGroup)
@click.version_option(__version__, prog_name="paft-plugin")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def paft(debug: bool) -> None:
    """PAFT: sparse SFT and preference training in parallel from one base model, then fusion (arXiv 2406.17923)."""


@paft.command()
@click.option("--base", type=click.Path(path_type=Path), required=True, help="Folder of the base model.")
@click.option("--sft", type=click.Path(path_type=Path), required=True, help="The SFT branch: adapter or model.")
@click.option(
    "--preference", type=click.Path(path_type=Path), required=True, help="The preference branch: adapter or model."
)
@click.option("--method", type=click.Choice(list(METHODS)), required=True, help="Merge method.")
@click.option("--density", type=float, help="Share of each delta's entries to keep. [ties: 0.2, DARE: 0.5]")
@click.option("--weight-sft", type=float, help="Weight of the SFT branch. [1, linear: 0.5]")
@click.option("--weight-preference", type=float, help="Weight of the preference branch. [1, linear: 0.5]")
@click.option("--scale", type=float, help="Factor on the merged delta (mergekit's lambda). [1]")
@click.option(
    "--normalize/--no-normalize",
    default=None,
    help="Divide each entry by the weights that take part. [ties without weights: yes, otherwise no]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the methods that drop by chance.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="The recipe's file, such as ties.yml.")
@click.option(
    "--merged", type=click.Path(path_type=Path), help="Where the merged model goes. [OUTPUT without its suffix]"
)
def recipe(**options: Any) -> None:
    """Write a mergekit recipe that fuses two branches of one base model; its header holds the command that runs it."""
    import shlex

    from paft_plugin.deltas import why_unproven
    from paft_plugin.fusion.recipe import merge_command, write_recipe
    from paft_plugin.fusion.request import RecipeRequest

    written = write_recipe(RecipeRequest(**options))
    if warning := why_unproven(written.sft.path):
        click.echo(f"Warning: {warning}", err=True)
    click.echo(f"Wrote {written.file}. Run it with:\n{shlex.join(merge_command(written))}")


@paft.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="For methods that drop by chance."
)
@click.option("--device", default="auto", show_default=True, help="Where to merge: cpu, cuda, …")
@click.option("--out-shard-size", default="5GB", show_default=True, help="Most bytes in one file of weights.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def merge(recipe: Path, out: Path, seed: int, device: str, out_shard_size: str, quiet: bool) -> None:
    """Merge by RECIPE, any mergekit YAML, into the new folder OUT; adapters are applied on the fly."""
    from paft_plugin.fusion.merge import open_fusion, write_fusion

    for warning in write_fusion(open_fusion(recipe, seed, device), out, out_shard_size, quiet=quiet):
        click.echo(f"Warning: {warning}", err=True)
    click.echo(f"Merged into {out}.")


@paft.command()
@click.option(
    "--output-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("paft-demo"),
    show_default=True,
    help="Where everything goes; a run that was interrupted goes on there.",
)
@click.option("--quick", is_flag=True, help="Fewer steps and fewer arms.")
def demo(output_dir: Path, quick: bool) -> None:
    """Take a small shipped base model down the whole road: train both branches, fuse them, score every arm.

    Needs no network, no GPU and no account.
    """
    from rich.console import Console

    from paft_plugin.demo.run import run_demo

    run_demo(output_dir, quick=quick, console=Console())
    click.echo(f"Everything is in {output_dir}: README.md explains it, results.json has the numbers.")


@paft.command()
@click.argument("config", type=click.Path(path_type=Path), metavar="PAFT.YML")
@click.option("--trials", type=click.IntRange(min=1), help="How many in all, over every run. [the file's, 40]")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), help="Seconds to begin trials in. [the file's]")
def search(config: Path, trials: int | None, timeout: float | None) -> None:
    """Find the merge method, densities, weights and scale that score best on validation items, as PAFT.YML says.

    One objective gives the best recipe, more give the Pareto front. An interrupted search goes on with the same command.
    """
    from rich.console import Console

    from paft_plugin.search.run import run_search

    outcome = run_search(config, Console(), trials=trials, timeout=timeout)
    click.echo(f"Everything is in {outcome.folder}: README.md explains it, front.png shows it.")


if __name__ == "__main__":
    sys.exit(paft())
