"""`axolotl paft …`: arguments and printing only; whatever is heavy is imported inside the commands."""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paft_plugin import __version__
from paft_plugin.commands.init import init
from paft_plugin.errors import PaftError, raise_if_any
from paft_plugin.fusion.methods import MEANINGS, METHODS, extra_names

if TYPE_CHECKING:
    from paft_plugin.fusion.merge import Fusion

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


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep what other libraries say while they are imported (mergekit imports them all) from between our lines."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


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


@paft.command()
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

    from paft_plugin.fusion.materialize import materialized
    from paft_plugin.fusion.recipe import merge_command, write_recipe
    from paft_plugin.fusion.request import RecipeRequest

    given = {name: options.pop(name) for name in extra_names()}
    extras = {name: value for name, value in given.items() if value is not None}
    written = write_recipe(RecipeRequest(**options, extras=extras))
    for warning in written.warnings:
        click.echo(f"Warning: {warning}", err=True)
    for folder, size in materialized(written).items():
        click.echo(f"Whole model: {folder} ({size / 1e9:.2f} GB). Delete it after the merge.")
    click.echo(f"Wrote {written.file}. Run it with:\n{shlex.join(merge_command(written))}")


@paft.command()
@click.argument("recipes", metavar="RECIPE...", nargs=-1, type=click.Path(path_type=Path))
@click.option("--no-weights", is_flag=True, help="Read no weights: quick, but blind to what the deltas hold.")
@click.option(
    "--json",
    "json_file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the findings there, for machines.",
)
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
        from paft_plugin.fusion.lint.codes import explain as explained
        from paft_plugin.fusion.lint.report import explanation

        click.echo("\n".join(explanation(explained(explain), width)))
        return
    if not recipes:
        raise click.UsageError("Missing argument 'RECIPE...'.")

    from paft_plugin.files import write_json
    from paft_plugin.fusion.lint import errors, lint_recipe
    from paft_plugin.fusion.lint.report import as_json, as_text, summary

    with quietly():
        findings = {file: lint_recipe(file, read_weights=not no_weights) for file in recipes}
    for found in findings.values():
        for line in as_text(found, width):
            click.echo(line)
    click.echo(summary(findings, not no_weights))
    if json_file is not None:
        write_json(json_file, as_json(findings, not no_weights))
    if any(errors(found) for found in findings.values()):
        ctx.exit(BAD_INPUT)


@paft.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="For methods that drop by chance."
)
@click.option("--device", default="auto", show_default=True, help="Where to merge: cpu, cuda, …")
@click.option("--out-shard-size", default="5GB", show_default=True, help="Most bytes in one file of weights.")
@click.option("--adapter", is_flag=True, help="Write the fused delta as a PEFT adapter on the base, not a model.")
@click.option(
    "--rank", type=click.IntRange(min=1), help="Most rank of each module of the adapter. [linear methods: as is exact]"
)
@click.option(
    "--max-error",
    type=click.FloatRange(min=0),
    help="Greatest part of the fused delta that the adapter may miss, ‖δ − δ̂‖/‖δ‖. [0.05]",
)
@click.option("--quiet", is_flag=True, help="No progress bar.")
def merge(
    recipe: Path,
    out: Path,
    seed: int,
    device: str,
    out_shard_size: str,
    adapter: bool,
    rank: int | None,
    max_error: float | None,
    quiet: bool,
) -> None:
    """Merge by RECIPE, any mergekit YAML, into the new folder OUT; adapters are applied on the fly.

    The recipe is linted first: errors stop the merge, warnings are shown and recorded.
    """
    from paft_plugin.fusion.merge import open_fusion, reuse_freed_memory, write_fusion

    if not adapter and (rank is not None or max_error is not None):
        raise PaftError("--rank and --max-error are about an adapter. Add --adapter, or leave them out.")
    reuse_freed_memory()
    findings = _lint_for_merge(recipe)
    fusion = open_fusion(recipe, seed, device)
    if adapter:
        notes = _merge_into_adapter(fusion, out, rank, max_error, findings, quiet)
    else:
        notes = write_fusion(fusion, out, out_shard_size, findings, quiet)
    for note in notes:
        click.echo(f"Warning: {note}", err=True)
    click.echo(f"Merged into {out}.")


def _lint_for_merge(recipe: Path) -> list[str]:
    """Show what the linter finds, but for what concerns plain mergekit-yaml alone; returns it for the record.

    Raises:
        PaftError: the errors among the findings.
    """
    from paft_plugin.fusion.lint import errors, lint_recipe
    from paft_plugin.fusion.lint.report import as_text

    with quietly():
        findings = [finding for finding in lint_recipe(recipe) if not finding.plain_only]
    wrong = errors(findings)
    raise_if_any([f"{finding.code} {finding.file}: {finding.message} {finding.fix}" for finding in wrong])
    for line in as_text(findings, shutil.get_terminal_size().columns):
        click.echo(line, err=True)
    return [f"{finding.code}: {finding.message}" for finding in findings]


def _merge_into_adapter(
    fusion: Fusion, out: Path, rank: int | None, max_error: float | None, findings: list[str], quiet: bool
) -> list[str]:
    """Write the adapter and show what it misses; returns warnings."""
    from rich.console import Console

    from paft_plugin.fusion.adapter import MAX_ERROR, error_table, write_adapter

    written = write_adapter(fusion, out, rank, MAX_ERROR if max_error is None else max_error, findings, quiet)
    Console().print(error_table(written.errors))
    return written.warnings


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


paft.add_command(init)


if __name__ == "__main__":
    sys.exit(paft())
