"""How to repeat a run: the commands that made it, with versions and seeds from its records."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from paft_plugin.files import PROOF_FILE

RUN_FILE = Path("configs") / "run.json"
"""What the pipeline says of a run before it starts it."""
LOGS, MARKERS = "logs", ".stages"
"""Where it keeps its stages' output and what it knows of them."""
_COMMAND_BYTES = 1 << 16
_OWN_COMMANDS = {"axolotl.cli.main": "axolotl"}
"""Modules that are commands as well."""
_SEED = re.compile(r"^seed:\s*(\d+)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Step:
    """One stage: what it does (or its name) and its command, as one would type it in the run's folder."""

    title: str
    command: str


@dataclass(frozen=True)
class Repeat:
    """All that is known of how a run was made."""

    steps: tuple[Step, ...]
    versions: tuple[tuple[str, str], ...]
    seeds: tuple[tuple[str, str], ...]
    """What they are of → the seed."""
    config: str | None
    """The run's own `paft.yml`, if it lies in the folder."""
    is_planned: bool
    """Whether the pipeline made it, from a `paft.yml`."""
    description: str
    """What the user says of the run, in Markdown; may be empty."""


def how_to_repeat(run: Path) -> Repeat:
    """What the folder `run` says of its making; what it doesn't say is missing, which is no error."""
    planned = read_record(run / RUN_FILE)
    records = sorted([*run.glob(f"branches/*/{PROOF_FILE}"), *run.glob(f"models/*/{PROOF_FILE}")])
    versions: dict[str, str] = {}
    seeds: dict[str, str] = {}
    for file in records:
        record = read_record(file)
        for package, version in (record.get("versions") or {}).items():
            versions.setdefault(str(package).replace("_", "-"), str(version))
        if record.get("seed") is not None:
            seeds[f"{file.parent.parent.name}/{file.parent.name}"] = str(record["seed"])
    for file in sorted(run.glob("configs/*.yml")):
        if found := _SEED.search(file.read_text(encoding="utf-8", errors="replace")):
            seeds[f"configs/{file.name}"] = found[1]
    return Repeat(
        tuple(_planned(planned) or _logged(run)),
        tuple(sorted(versions.items())),
        tuple(sorted(seeds.items())),
        "paft.yml" if (run / "paft.yml").is_file() else None,
        bool(planned),
        str(planned.get("description") or ""),
    )


def read_record(file: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where there is none that can be read."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _planned(content: dict[str, Any]) -> list[Step]:
    """The stages as the pipeline planned them; none if it did not, or that cannot be read."""
    try:
        return [Step(str(stage["title"]), shlex.join(map(str, stage["command"]))) for stage in content["stages"]]
    except (KeyError, TypeError):
        return []


def _logged(run: Path) -> list[Step]:
    """The command at the head of each stage's log, in the order in which the stages ended."""
    ended = {
        marker.stem: str(read_record(marker).get("finished_at", "")) for marker in sorted(run.glob(f"{MARKERS}/*.json"))
    }
    logs = sorted(run.glob(f"{LOGS}/*.log"), key=lambda log: (ended.get(log.stem, "~"), log.stem))
    steps = []
    for log in logs:
        with log.open("rb") as file:
            first = file.readline(_COMMAND_BYTES).decode("utf-8", errors="replace").rstrip("\n")
        if first.startswith("$ "):
            steps.append(Step(log.stem, _readable(first[2:], run)))
    return steps


def _readable(command: str, run: Path) -> str:
    """`command` with paths as they are seen from the run's folder, and without what only this machine has."""
    try:
        words = shlex.split(command)
    except ValueError:
        return command
    here = sorted({str(run.absolute()), str(run.resolve())}, key=len, reverse=True)
    for root in here:
        words = [re.sub(rf"{re.escape(root)}(?:/|$)", "", word) or "." for word in words]
    if words and PurePath(words[0]).name.startswith("python"):
        words[0] = "python"
        if words[1:2] == ["-m"] and words[2:3] and words[2] in _OWN_COMMANDS:
            words = [_OWN_COMMANDS[words[2]], *words[3:]]
    return shlex.join(words)
