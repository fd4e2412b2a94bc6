"""How to repeat a run: the commands that made it, with versions and seeds from its records."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from paft_plugin.evaluation.arms import Step, read_run
from paft_plugin.files import PROOF_FILE, read_json_or_nothing

_SEED = re.compile(r"^seed:\s*(\d+)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Repeat:
    """All that is known of how a run was made."""

    steps: Sequence[Step]
    versions: Sequence[tuple[str, str]]
    seeds: Sequence[tuple[str, str]]
    """What they are of → the seed."""
    config: str | None
    """The run's own `paft.yml`, if it lies in the folder."""
    description: str
    """What the user says of the run, in Markdown; may be empty."""


def how_to_repeat(run: Path) -> Repeat:
    """What the folder `run` says of its making; what it doesn't say is missing, which is no error.

    Raises:
        PaftError: Its `run.json` is damaged or of another version.
    """
    planned = read_run(run)
    records = sorted([*run.glob(f"branches/*/{PROOF_FILE}"), *run.glob(f"models/*/{PROOF_FILE}")])
    versions: dict[str, str] = {}
    seeds: dict[str, str] = {}
    for file in records:
        record = read_json_or_nothing(file)
        for package, version in (record.get("versions") or {}).items():
            versions.setdefault(str(package).replace("_", "-"), str(version))
        if record.get("seed") is not None:
            seeds[f"{file.parent.parent.name}/{file.parent.name}"] = str(record["seed"])
    for file in sorted(run.glob("configs/*.yml")):
        if found := _SEED.search(file.read_text(encoding="utf-8", errors="replace")):
            seeds[f"configs/{file.name}"] = found[1]
    return Repeat(
        planned.stages if planned else (),
        sorted(versions.items()),
        sorted(seeds.items()),
        "paft.yml" if (run / "paft.yml").is_file() else None,
        planned.description if planned else "",
    )
