"""`axolotl paft init`."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

import click

from paft_plugin.commands import FOLDER
from paft_plugin.errors import raise_if_any


@click.command()
@click.argument("base")
@click.option("--sft-data", required=True, metavar="FILE|HUB", help="What the SFT branch is trained on.")
@click.option("--preference-data", required=True, metavar="FILE|HUB", help="What the preference branch is trained on.")
@click.option("--output", type=FOLDER, default=Path("paft"), show_default=True, help="Folder for the three files.")
@click.option("--adapter", type=click.Choice(["lora", "qlora", "full"]), default="lora", show_default=True)
@click.option(
    "--rl",
    type=click.Choice(["dpo", "orpo", "simpo"]),
    default="dpo",
    show_default=True,
    help="How preferences are learnt.",
)
@click.option(
    "--branch",
    "branches",
    multiple=True,
    metavar="NAME=DIR[,role=ROLE]",
    help="A further branch, trained already by any trainer: folder or hub name of an adapter or a model; may be repeated. "
    "[role: sft]",
)
@click.option("--force", is_flag=True, help="Write over files that are there.")
def init(
    base: str,
    sft_data: str,
    preference_data: str,
    output: Path,
    adapter: str,
    rl: str,
    branches: tuple[str, ...],
    force: bool,
) -> None:
    """Write a commented paft.yml for a base model and two data sets.

    With it come two axolotl configs. BASE is a folder or a hub name. Looks at base and rows; each value that it chooses says why.
    """
    import torch

    from paft_plugin.commands.recipe import read_branches
    from paft_plugin.pipeline.starter import TrainedBranch, Wish, write_starter

    found, own, problems = read_branches(None, None, branches)
    problems += [
        f"--branch: {', '.join(texts)}: a recipe's setting. Set it under `fusion:`." for texts in own.values() if texts
    ]
    raise_if_any(problems)
    trained = tuple(TrainedBranch(branch.name, branch.role, str(branch.path)) for branch in found)
    wish = Wish(base, sft_data, preference_data, output, adapter, rl, trained)  # type: ignore[arg-type]
    files = write_starter(wish, gpu=torch.cuda.is_available(), force=force)
    click.echo(f"Wrote {', '.join(str(file) for file in files)}.")
    click.echo(f"Read them, then see what they would do:\naxolotl paft run {quote(str(files[0]))} --dry-run")
