"""mergekit's own command line, run in this process."""

from __future__ import annotations

import shlex
from pathlib import Path


def command_in(recipe: Path) -> list[str]:
    (line,) = [line for line in recipe.read_text().splitlines() if line.startswith("# mergekit-yaml ")]
    return shlex.split(line.removeprefix("# "))


def run_mergekit(command: list[str]) -> None:
    from mergekit.scripts.run_yaml import main

    main.main(args=[*command[1:], "--quiet"], standalone_mode=False)
