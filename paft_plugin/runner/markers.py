"""How we know that a stage is done: a marker `<run dir>/.stages/<name>.json` names all that its result came from.

A stage whose marker names today's parts is up to date; what differs is why it runs again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from paft_plugin.errors import PaftError, some
from paft_plugin.files import write_json, write_text
from paft_plugin.runner.identity import CODE, Identity
from paft_plugin.runner.stages import MARKERS, Stage, absolute, marker_path, outside

SCHEMA = 2
FIRST = "not run yet"
"""Why a stage runs that was never started."""


@dataclass(frozen=True)
class Marker:
    """What is known of a finished stage."""

    name: str
    fingerprint: str
    seconds: float
    """How long it took."""
    finished_at: str
    """UTC, ISO 8601."""
    parts: Mapping[str, str]
    """Of the identity that it ran with."""


def read_marker(run_dir: Path, name: str) -> Marker | None:
    """The marker of the stage `name`, or None when there is none that can be trusted."""
    try:
        content = json.loads(marker_path(run_dir, name).read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA or content["name"] != name:
            return None
        return Marker(
            name,
            str(content["fingerprint"]),
            float(content["seconds"]),
            str(content["finished_at"]),
            {str(key): str(value) for key, value in content["parts"].items()},
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None  # half a marker is no marker: the stage runs again


def write_marker(run_dir: Path, name: str, identity: Identity, seconds: float) -> Marker:
    """Say that the stage `name` is done; raises `OSError` when that cannot be written."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    marker = Marker(name, identity.fingerprint, round(seconds, 3), now, dict(identity.parts))
    write_json(marker_path(run_dir, name), {"schema": SCHEMA, **vars(marker)})
    return marker


def outdated(ordered: Sequence[Stage], run_dir: Path, now: Mapping[str, Identity]) -> dict[str, str]:
    """The stages that must run, in order, each with the reason in a few words."""
    found: dict[str, str] = {}
    for stage in ordered:
        if reason := _reason(stage, run_dir, now[stage.name], found):
            found[stage.name] = reason
    return found


def _reason(stage: Stage, run_dir: Path, identity: Identity, running: Mapping[str, str]) -> str:
    """Why a stage must run; empty if it is up to date."""
    marker = read_marker(run_dir, stage.name)
    if marker is None:
        started = _started(run_dir, stage.name)
        if started is None:
            return FIRST
        if started == identity.fingerprint:
            return "interrupted: goes on" if stage.resumes else "interrupted: starts again"
        return "interrupted, and changed since: starts again"
    changed = [name for name in identity.differences(marker.parts) if not name.startswith("stage ")]
    if changed:
        names = ["the version of paft-plugin" if name == CODE else name for name in changed]
        return f"changed: {some(names)}"
    if not absolute(run_dir, stage.folder).is_dir():
        return f"its folder {stage.folder} is gone"
    if again := [need for need in stage.needs if need in running]:
        return f"after {some(again)}"
    # The needed stages are up to date, but they ran again since: a run that was cut off in between.
    needs = identity.differences(marker.parts)
    return f"after {some([name.removeprefix('stage ') for name in needs])}" if needs else ""


def forget(stages: Iterable[Stage], run_dir: Path) -> None:
    """Remove the markers of `stages`, which are about to run.

    Before the first of them starts: killed half-way, a later stage must not pass for up to date although what it was
    made from has been made anew.
    """
    for stage in stages:
        marker_path(run_dir, stage.name).unlink(missing_ok=True)


def prepare_folder(stage: Stage, run_dir: Path, fingerprint: str) -> bool:
    """Make the stage's folder ready to start in: empty, unless the stage resumes an attempt with the same fingerprint.

    Returns whether an earlier attempt is kept. Raises `PaftError`, and deletes nothing, for a folder that is not this run's.
    """
    folder = absolute(run_dir, stage.folder)
    if problem := outside(folder, run_dir):
        raise PaftError(f"Stage {stage.name!r}: output folder {folder} {problem}; nothing was deleted.")
    kept = stage.resumes and _started(run_dir, stage.name) == fingerprint
    if not kept:
        _note(run_dir, stage.name).unlink(missing_ok=True)
        if folder.exists():
            shutil.rmtree(folder)
        write_text(_note(run_dir, stage.name), fingerprint)
    folder.mkdir(parents=True, exist_ok=True)
    return kept


def _note(run_dir: Path, name: str) -> Path:
    """Says with which fingerprint a stage was started last."""
    return run_dir / MARKERS / f"{name}.started"


def _started(run_dir: Path, name: str) -> str | None:
    try:
        return _note(run_dir, name).read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError):
        return None
