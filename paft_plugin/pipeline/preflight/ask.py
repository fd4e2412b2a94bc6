"""Asks the probe about every branch, in one process beside this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from paft_plugin.errors import PaftError
from paft_plugin.files import write_json
from paft_plugin.pipeline.branches import Branch, write_config
from paft_plugin.pipeline.logs import tail
from paft_plugin.pipeline.preflight.view import Answer
from paft_plugin.pipeline.setup import Setup
from paft_plugin.schema import read_yaml

PATIENCE = 600.0  # seconds; a plugin that hangs on import is all that this is for


def ask(setup: Setup, branches: Sequence[Branch], folder: Path) -> dict[str, Answer]:
    """What axolotl makes of each branch.

    Args:
        setup: The run.
        branches: Those with a config.
        folder: A temporary one: gets requests, answers, and each branch's tokenizer in a folder of its name.

    Raises:
        PaftError: The probe failed; holds the end of what it said.
    """
    questions = [_question(setup, branch, folder) for branch in branches]
    write_json(folder / "request.json", questions)
    log = folder / "log"
    devices = {"CUDA_VISIBLE_DEVICES": ""} if setup.config.executor.devices == [] else {}
    with log.open("wb") as output:
        try:
            subprocess.run(
                [sys.executable, "-m", "paft_plugin.pipeline.preflight.probe", str(folder / "request.json")],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "AXOLOTL_DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "false", **devices},
                timeout=PATIENCE,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise PaftError(f"axolotl did not finish looking at the configs in {PATIENCE:.0f} s. {_end(log)}") from None
    return {branch.name: _answer(branch, folder, log) for branch in branches}


def _question(setup: Setup, branch: Branch, folder: Path) -> dict[str, object]:
    file = folder / f"{branch.name}.yml"
    write_config(branch, str(setup.base), folder, file)  # the very config that the run will write, but for its folders
    content = read_yaml(file, "")
    return {
        "name": branch.name,
        "where": branch.where,
        "content": content,
        "here": setup.config.executor.kind == "local",
    }


def _answer(branch: Branch, folder: Path, log: Path) -> Answer:
    file = folder / f"{branch.name}.json"
    try:
        return Answer(**json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return Answer([f"{branch.where}: axolotl failed while looking at this config. {_end(log)}"])


def _end(log: Path) -> str:
    lines = tail(log)
    return "\n".join(["It said:", *lines]) if lines else "It said nothing."
