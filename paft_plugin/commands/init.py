"""`axolotl paft init`."""

from __future__ import annotations

from pathlib import Path

import click

from paft_plugin.commands import FOLDER


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
@click.option("--force", is_flag=True, help="Write over files that are there.")
def init(base: str, sft_data: str, preference_data: str, output: Path, adapter: str, rl: str, force: bool) -> None:
    """Write a commented paft.yml with its two axolotl configs for BASE (a folder or a hub name) and two data sets.

    Looks at the base and at the rows; every value that it chooses says why.
    """
    import torch

    from paft_plugin.pipeline.starter import Wish, write_starter

    wish = Wish(base, sft_data, preference_data, output, adapter, rl)  # type: ignore[arg-type]
    files = write_starter(wish, gpu=torch.cuda.is_available(), force=force)
    click.echo(f"Wrote {', '.join(str(file) for file in files)}.")
    click.echo(f"Read them, then see what they would do:\naxolotl paft run {files[0]} --dry-run")
