"""Asks the probe about every branch, in one process beside this one."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from paft_plugin.errors import Findings
from paft_plugin.files import read_json_or_nothing, write_json
from paft_plugin.pipeline.arms import Setup
from paft_plugin.pipeline.branches import Branch
from paft_plugin.pipeline.held_out.request import owners, request_of
from paft_plugin.runner.logs import tail


@dataclass
class Answer(Findings):
    """What was found out about one branch."""

    precision: dict[str, str] = field(default_factory=dict)
    """`compute` and `weights`, such as bf16 and 4 bits; empty if the config is not valid."""
    rendered: str | None = None
    """A small conversation in the chat template that the data are read with; None if they are read without one."""
    ending: str = ""
    """What comes right before an answer in the branch's rows; empty if unknown."""
    tokenizer_saved: bool = False


HELD_OUT_REQUEST, HELD_OUT_ANSWER = "held-out.json", "held-out-answer.json"
"""Beside the request for the branches, where it is not too large."""
MOST_HELD_OUT_BYTES = 20 << 20
PATIENCE = 600.0  # seconds; a plugin that hangs on import is all that this is for


@contextlib.contextmanager
def asked(setup: Setup, branches: Sequence[Branch], folder: Path) -> Iterator[Callable[[], dict[str, Answer]]]:
    """Ask what axolotl makes of each branch that has a config, and yield what waits for the answers; no process is left behind.

    The temporary `folder` gets requests, answers, and each branch's tokenizer in a folder of its name; `held_out_findings` reads
    what was found of the rows to hold out.
    """
    write_json(folder / "request.json", [_question(setup, branch, folder) for branch in branches])
    held_out = request_of(setup)
    if held_out is not None and _is_small(setup):
        write_json(folder / HELD_OUT_REQUEST, held_out.model_dump(mode="json"))
    devices = {"CUDA_VISIBLE_DEVICES": ""} if setup.config.executor.devices == [] else {}
    process = start(folder / "request.json", folder / "log", devices)

    def answers() -> dict[str, Answer]:
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
        return {branch.name: _answer(branch, folder) for branch in branches}

    try:
        yield answers
    finally:
        process.kill()
        process.wait()


def held_out_findings(folder: Path) -> Findings:
    """What the probe found of the rows to hold out; nothing where it was not asked."""
    return Findings(**read_json_or_nothing(folder / HELD_OUT_ANSWER))


def _is_small(setup: Setup) -> bool:
    """Whether all rows can be read in seconds; of more, the stage itself says what it finds."""
    branches = [branch for branch in owners(setup).values() if branch.trained is None]
    files = [path for branch in branches for path in branch.data()]
    size = sum(file.stat().st_size for path in files for file in (path.rglob("*") if path.is_dir() else [path]))
    return size <= MOST_HELD_OUT_BYTES and not any(branch.remote_data() for branch in branches)


def _answer(branch: Branch, folder: Path) -> Answer:
    try:
        return Answer(**json.loads((folder / f"{branch.name}.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        lines = tail(folder / "log")
        said = "\n".join(["It said:", *lines]) if lines else "It said nothing."
        return Answer([f"{branch.where}: axolotl failed while looking at this config. {said}"])


def start(request: Path, log: Path, variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a probe, which answers beside `request`."""
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "paft_plugin.pipeline.preflight.probe", str(request)],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "AXOLOTL_DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "false", **variables},
        )


def _question(setup: Setup, branch: Branch, folder: Path) -> dict[str, object]:
    """The config as the run will write it, but for its folders."""
    work = folder / f"{branch.name}-output"
    folders = {"output_dir": str(work), "dataset_prepared_path": str(work / "prepared")}
    content = {**branch.content, "base_model": str(setup.base), **folders}
    here = setup.config.executor.kind == "local"
    return {"name": branch.name, "where": branch.where, "content": content, "here": here}
