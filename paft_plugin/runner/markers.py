"""How we know that a stage is done: a marker `<run dir>/.stages/<name>.json` names all that its result came from.

A stage whose marker names today's parts is up to date; what differs is why it runs again.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

from paft_plugin.errors import PaftError, some
from paft_plugin.files import JsonFile, read_json_or_nothing, write_text
from paft_plugin.runner.identity import Identity
from paft_plugin.runner.stages import MARKERS, Stage, absolute, marker_path, outside

FIRST = "not run yet"
"""Why a stage runs that was never started."""


class Marker(JsonFile):
    """What is known of a finished stage."""

    SCHEMA: ClassVar[int] = 3

    name: str
    fingerprint: str
    seconds: float
    """How long it took."""
    finished_at: str
    """UTC, ISO 8601."""
    parts: dict[str, str]
    """Of the identity that it ran with."""
    peak_memory: int | None = None
    """Most bytes of main memory that one of its processes held at once; None where nobody looked."""


def read_marker(run_dir: Path, name: str) -> Marker | None:
    """The marker of the stage `name`, or None when there is none that can be trusted."""
    try:
        marker = Marker.read(marker_path(run_dir, name))
    except PaftError:
        return None  # half a marker is no marker: the stage runs again
    return marker if marker.name == name else None


def write_marker(
    run_dir: Path, name: str, identity: Identity, seconds: float, peak_memory: int | None = None
) -> Marker:
    """Say that the stage `name` is done; raises `OSError` when that cannot be written."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    marker = Marker(
        name=name,
        fingerprint=identity.fingerprint,
        seconds=round(seconds, 3),
        finished_at=now,
        parts=dict(identity.parts),
        peak_memory=peak_memory,
    )
    marker.write(marker_path(run_dir, name))
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
        if marker_path(run_dir, stage.name).exists():
            return _why_not_trusted(run_dir, stage.name)
        started = _started(run_dir, stage.name)
        if started is None:
            return FIRST
        if started == identity.fingerprint:
            return "interrupted: goes on" if stage.resumes or stage.keeps else "interrupted: starts again"
        return f"interrupted, and changed since: {'keeps what fits' if stage.keeps else 'starts again'}"
    changed = [name for name in identity.differences(marker.parts) if not name.startswith("stage ")]
    if changed:
        return f"changed: {some(changed)}"
    if gone := [folder for folder in stage.folders if not absolute(run_dir, folder).is_dir()]:
        return f"its folder {gone[0]} is gone"
    if again := [need for need in stage.needs if need in running]:
        return f"after {some(again)}"
    # The needed stages are up to date, but they ran again since: a run that was cut off in between.
    needs = identity.differences(marker.parts)
    return f"after {some([name.removeprefix('stage ') for name in needs])}" if needs else ""


def _why_not_trusted(run_dir: Path, name: str) -> str:
    """Why the marker that is there does not count."""
    schema = read_json_or_nothing(marker_path(run_dir, name)).get("schema")
    if not isinstance(schema, int) or schema == Marker.SCHEMA:
        return "its marker is damaged"
    return f"finished by {'an earlier' if schema < Marker.SCHEMA else 'a later'} version"


def forget(stages: Iterable[Stage], run_dir: Path) -> None:
    """Remove the markers of `stages`, which are about to run.

    Before the first of them starts: killed half-way, a later stage must not pass for up to date although what it was
    made from has been made anew.
    """
    for stage in stages:
        marker_path(run_dir, stage.name).unlink(missing_ok=True)


def prepare_folder(stage: Stage, run_dir: Path, fingerprint: str) -> bool:
    """Make the stage's folders ready to start in: empty, unless it keeps them or resumes an attempt with the same fingerprint.

    Returns whether an earlier attempt is kept. Raises `PaftError`, and deletes nothing, for a folder that is not this run's.
    """
    folders = [absolute(run_dir, folder) for folder in stage.folders]
    for folder in folders:
        if problem := outside(folder, run_dir):
            raise PaftError(f"Stage {stage.name!r}: output folder {folder} {problem}; nothing was deleted.")
    kept = (stage.resumes or stage.keeps) and _started(run_dir, stage.name) == fingerprint
    if not kept:
        _note(run_dir, stage.name).unlink(missing_ok=True)
        for folder in filter(Path.exists, () if stage.keeps else folders):
            shutil.rmtree(folder)
        write_text(_note(run_dir, stage.name), fingerprint)
    for folder in folders:
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
