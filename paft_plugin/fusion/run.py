"""`python -m paft_plugin.fusion.run RECIPE`: run the command that a recipe's header names, and tidy up after it."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from paft_plugin.errors import BAD_INPUT, INTERRUPTED, PaftError

PREFIX = "# mergekit-yaml "


def header_command(recipe: Path) -> list[str]:
    """The argument list in a recipe's header.

    Raises:
        PaftError: if there is no such line.
        OSError: if the recipe can't be read.
    """
    for line in recipe.read_text(encoding="utf-8").splitlines():
        if line.startswith(PREFIX):
            return shlex.split(line.removeprefix("# "))
    raise PaftError(f"{recipe} has no line that starts with {PREFIX!r}: write it with `axolotl paft recipe`")


def main(arguments: list[str]) -> int:
    """Run the command of `RECIPE`; its exit code, or 2 for a user's mistake here and 130 after Ctrl-C."""
    if len(arguments) != 1:
        print("Usage: python -m paft_plugin.fusion.run RECIPE", file=sys.stderr)
        return BAD_INPUT
    try:
        return run(header_command(Path(arguments[0])))
    except (PaftError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED


def run(command: list[str]) -> int:
    """Run `mergekit-yaml …`, then remove its cache of adapters as whole models; returns its exit code."""
    # The one that belongs to this Python, whatever is first on PATH.
    beside = Path(sys.executable).with_name(command[0])
    code = subprocess.run([str(beside) if beside.exists() else command[0], *command[1:]], check=False).returncode
    if "--lora-merge-cache" in command:
        shutil.rmtree(command[command.index("--lora-merge-cache") + 1], ignore_errors=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
