"""`python -m paft_plugin.pipeline.train CONFIG [OPTION…]`: stock `axolotl train CONFIG OPTION…`, reproducible and resumable.

- Before 0.21, axolotl hands the config's `seed` to the Trainer alone, which is built after the adapter: the adapter's A is drawn
  from an unseeded generator, so two runs with one seed start, and end, differently. Here `random`, numpy and torch are seeded
  before axolotl starts, in its own process (with `--launcher python`; other launchers start new ones).
- axolotl resumes from the last checkpoint even if a kill left it half-written: such ones are removed first.
- Resumed from the last step, where that lies within an epoch, transformers' Trainer takes one more: such ones are removed, too.

The config needs nothing of ours.
"""

from __future__ import annotations

import shutil
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from paft_plugin.args import DEFAULT_SEED
from paft_plugin.errors import BAD_INPUT, PaftError
from paft_plugin.reading import read_json_file
from paft_plugin.schema import read_yaml

_LARGEST_SEED = 2**32 - 1  # numpy's limit
LONGER = {"--max-steps", "--max_steps", "--num-epochs", "--num_epochs", "--resume-from-checkpoint"}
"""Options by which a training may go on from its last step."""
_STATE = "trainer_state.json"  # the Trainer writes it last


def main(arguments: list[str]) -> int:
    """Train as `CONFIG` says; the exit code is axolotl's own, or 2 for a user's mistake here."""
    if not arguments or arguments[0].startswith("-"):
        print("Usage: python -m paft_plugin.pipeline.train CONFIG [OPTION OF AXOLOTL TRAIN]...", file=sys.stderr)
        return BAD_INPUT
    file, options = Path(arguments[0]), arguments[1:] or ["--launcher", "python"]
    try:
        config = read_yaml(file, "Give an axolotl config.")
        seed = seed_of(config, file)
    except PaftError as error:
        print(f"Error: {error}", file=sys.stderr)
        return BAD_INPUT
    if config.get("auto_resume_from_checkpoints") and config.get("output_dir"):
        for folder in drop_torn(Path(config["output_dir"])):
            print(f"{folder} was not written to the end: removed.")
        is_longer = any(option.partition("=")[0] in LONGER for option in options)
        for folder in () if is_longer else drop_ended(Path(config["output_dir"]), config):
            print(f"{folder} is of the last step, and to resume from it would add one: removed.")
    # axolotl's trainer arguments are parsed from sys.argv once more, so it has to be what the command would have been.
    sys.argv = ["axolotl", "train", str(file), *options]
    from axolotl.cli.main import cli
    from transformers import set_seed

    set_seed(seed)
    cli(prog_name="axolotl")  # ends by SystemExit, as the command does
    return 0


def seed_of(config: Mapping[str, Any], file: Path) -> int:
    """The seed that axolotl will take for `config`.

    Raises:
        PaftError: What is there is no seed; names `file`.
    """
    seed = config.get("seed")
    if seed is None:
        return DEFAULT_SEED
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= _LARGEST_SEED:
        raise PaftError(f"seed in {file} must be a whole number from 0 to {_LARGEST_SEED}, not {seed!r}.")
    return seed


def drop_torn(output_dir: Path) -> list[Path]:
    """Remove the checkpoints in `output_dir` that a kill or a power cut left half-written; returns their folders."""
    torn = [folder for folder in sorted(output_dir.glob("checkpoint-*")) if folder.is_dir() and not is_whole(folder)]
    for folder in torn:
        shutil.rmtree(folder)
    return torn


def drop_ended(output_dir: Path, config: Mapping[str, Any]) -> list[Path]:
    """Remove the checkpoints in `output_dir` that are of the last step, if that lies within an epoch; returns their folders.

    A training that is killed while it writes its result has one. Trainer looks for the end only after it has taken a step.
    """
    states = {file.parent: read_json_file(file) for file in sorted(output_dir.glob(f"checkpoint-*/{_STATE}"))}
    ended = [folder for folder, state in states.items() if isinstance(state, dict) and _has_ended(state, config)]
    for folder in ended:
        shutil.rmtree(folder)
    return ended


def _has_ended(state: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's state is of the last step that `config` wants, and that step within an epoch."""
    given = (state.get("global_step"), state.get("max_steps"), state.get("epoch"), config.get("num_epochs", 1))
    step, last, epoch, epochs = (float(each) if isinstance(each, (int, float)) else 0.0 for each in given)
    wanted = config.get("max_steps")
    if min(step, last, epoch, epochs) <= 0:
        return False
    if isinstance(wanted, int) and wanted > 0:
        return step >= wanted and (epoch % 1 > 0 or bool(config.get("streaming") or config.get("pretraining_dataset")))
    # Trainer is given steps for epochs, too, rounded: up to one fewer in each than it takes.
    return step >= last and epoch % 1 > 0 and step > epochs * (step / epoch - 1)


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint can be resumed from: its state is there, and no file of it is cut short or garbled."""
    try:
        read_json_file(checkpoint / _STATE)
        return all(_is_whole_file(path) for path in checkpoint.rglob("*") if path.is_file())
    except (OSError, ValueError):
        return False


def _is_whole_file(path: Path) -> bool:
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt"):  # its header says how long the file must be
                return True
        except SafetensorError:
            return False
    if path.suffix in (".pt", ".pth", ".bin"):
        try:
            with zipfile.ZipFile(path) as archive:  # what torch.save writes, with a checksum of each part
                return archive.testzip() is None
        except zipfile.BadZipFile:
            return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
