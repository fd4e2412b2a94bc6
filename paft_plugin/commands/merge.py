"""`axolotl paft merge`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import click

from paft_plugin.commands import PATH, SEEDS
from paft_plugin.errors import PaftError, print_warnings, quietly

if TYPE_CHECKING:
    from paft_plugin.fusion.merge import Fusion


@click.command()
@click.argument("recipe", type=PATH)
@click.argument("out", type=PATH)
@click.option("--seed", type=SEEDS, help="For methods that drop by chance. [that in the recipe's header, or else 0]")
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
    seed: int | None,
    device: str,
    out_shard_size: str,
    adapter: bool,
    rank: int | None,
    max_error: float | None,
    quiet: bool,
) -> None:
    """Merge by RECIPE, any mergekit YAML, into the new folder OUT.

    Adapters are applied on the fly. The recipe is linted first: errors stop the merge, warnings are shown and recorded.
    """
    from paft_plugin.fusion.merge import open_fusion, reuse_freed_memory, write_fusion
    from paft_plugin.fusion.recipe.methods import how_it_trims

    if not adapter and (rank is not None or max_error is not None):
        raise PaftError("--rank and --max-error are about an adapter. Add --adapter, or leave them out.")
    reuse_freed_memory()
    findings = linted(recipe)
    fusion = open_fusion(recipe, seed, device)
    if adapter:
        notes = _merge_into_adapter(fusion, out, rank, max_error, findings, quiet)
    else:
        notes = write_fusion(fusion, out, out_shard_size, findings, quiet)
    print_warnings(notes)
    if said := how_it_trims(fusion.config.merge_method):
        click.echo(said)
    click.echo(f"Merged into {out}.")


def linted(recipe: Path, json_file: Path | None = None) -> list[str]:
    """Show what the linter finds, but for what concerns plain mergekit-yaml alone, and return it for the record.

    `json_file` gets all of it for machines, errors too.

    Raises:
        PaftError: The errors among the findings.
    """
    from paft_plugin.fusion.lint.findings import LintFile, as_sentences, as_text, errors, for_merge
    from paft_plugin.fusion.lint.linter import lint_recipe

    with quietly():
        found = lint_recipe(recipe)
    if json_file is not None:
        LintFile.of({recipe: found}).write(json_file)
    wrong = errors(found)
    warnings = [finding for finding in found if finding not in wrong and not finding.plain_only]
    for line in as_text(warnings, shutil.get_terminal_size().columns):
        click.echo(line, err=True)
    return as_sentences(for_merge(found))


def _merge_into_adapter(
    fusion: Fusion, out: Path, rank: int | None, max_error: float | None, findings: list[str], quiet: bool
) -> list[str]:
    """Write the adapter and show what it misses; returns warnings."""
    from rich.console import Console

    from paft_plugin.fusion.adapter import MAX_ERROR, error_table, write_adapter

    written = write_adapter(fusion, out, rank, MAX_ERROR if max_error is None else max_error, findings, quiet)
    console = Console()
    console.print("What the adapter misses: ‖δ − BA‖ / ‖δ‖")
    console.print(error_table(written.errors))
    return written.warnings
