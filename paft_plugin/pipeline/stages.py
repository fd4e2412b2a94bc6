"""What a stage is, what its result depends on, and how we know that it is done.

A stage is a command with an output folder. When it ends well, a marker `<run dir>/.stages/<name>.json` says so and names the
stage's fingerprint; a stage whose marker names today's fingerprint is up to date. Nothing here starts a process.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from paft_plugin import __version__
from paft_plugin.errors import PaftError, raise_if_any
from paft_plugin.files import file_digest, fingerprint, write_json, write_text

MARKER_SCHEMA = 1
MARKERS, LOGS = ".stages", "logs"  # folders of the run directory that belong to the pipeline itself
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Bytes: configs and recipes, which may name the run directory, are smaller; weights and data are larger.
_SMALL = 1 << 20


@dataclass(frozen=True)
class Stage:
    """One command that fills one output folder."""

    name: str
    """Short and unique: names the marker, the log, and the stage in other stages' `needs`."""
    title: str
    """What a person sees while it runs."""
    command: tuple[str, ...]
    """The argument list; it runs with the run directory as working directory."""
    folder: Path
    """The stage's own output folder, inside the run directory (a relative one starts there)."""
    needs: tuple[str, ...] = ()
    """Names of the stages whose output this one reads; their fingerprints enter this one's."""
    inputs: tuple[Path, ...] = ()
    """Files and folders whose contents matter, outside of every stage's folder (relative ones start at the run directory)."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Extra variables that matter to the result; what only says where to run goes to the executor."""
    resumes: bool = False
    """The command itself goes on from what an interrupted attempt with the same fingerprint left in `folder`."""


@dataclass(frozen=True)
class Marker:
    """What is known of a finished stage: the fingerprint it ran with, how long it took, when (UTC, ISO 8601) it ended."""

    name: str
    fingerprint: str
    seconds: float
    finished_at: str


def absolute(run_dir: Path, path: Path) -> Path:
    """`path` as an absolute path without `..`, starting at the run directory when relative; links are left as they are."""
    return Path(os.path.abspath(run_dir / path))  # noqa: PTH100 - Path.resolve would follow the links that we must notice


def log_path(run_dir: Path, name: str) -> Path:
    """Where the output of the stage `name` goes."""
    return run_dir / LOGS / f"{name}.log"


def marker_path(run_dir: Path, name: str) -> Path:
    """Where the marker of the stage `name` lies when it is done."""
    return run_dir / MARKERS / f"{name}.json"


# --- checks and order ---------------------------------------------------------------------------------------------------


def in_order(stages: Sequence[Stage], run_dir: Path) -> list[Stage]:
    """The stages so that each comes after what it needs, otherwise in the order given.

    Raises `PaftError` with all mistakes at once: bad or repeated names, unknown needs, circles, folders that the
    pipeline must not empty.
    """
    problems = [*_name_problems(stages), *_folder_problems(stages, run_dir)]
    known = {stage.name for stage in stages}
    for stage in stages:
        for need in stage.needs:
            if need not in known:
                problems.append(f"Stage {stage.name!r} needs {need!r}, which is not a stage of this run.")
    raise_if_any(problems)
    order: list[Stage] = []
    done: set[str] = set()
    while len(order) < len(stages):
        ready = next((stage for stage in stages if stage.name not in done and done.issuperset(stage.needs)), None)
        if ready is None:
            left = ", ".join(stage.name for stage in stages if stage.name not in done)
            raise PaftError(f"These stages need each other in a circle, or something in one: {left}.")
        order.append(ready)
        done.add(ready.name)
    return order


def _name_problems(stages: Sequence[Stage]) -> Iterable[str]:
    seen: set[str] = set()
    for stage in stages:
        if not _NAME.fullmatch(stage.name):
            yield f"Stage name {stage.name!r} cannot name a file: use letters, digits, '.', '_' and '-'."
        if stage.name.lower() in seen:  # in lower case, because a marker's file system may not tell case apart
            yield f"Stage name {stage.name!r} is used twice."
        seen.add(stage.name.lower())
        if not stage.command:
            yield f"Stage {stage.name!r} has no command."


def _folder_problems(stages: Sequence[Stage], run_dir: Path) -> Iterable[str]:
    """A stage that starts again empties its folder: so it must be its own, in the run directory, and hold no input."""
    taken = {absolute(run_dir, Path(name)): "the pipeline itself" for name in (MARKERS, LOGS)}
    for stage in stages:
        folder = absolute(run_dir, stage.folder)
        if problem := _outside(folder, run_dir):
            yield f"Stage {stage.name!r}: output folder {folder} {problem}."
        for other, owner in taken.items():
            if folder == other or folder in other.parents or other in folder.parents:
                yield f"Stage {stage.name!r}: output folder {folder} overlaps {other}, which belongs to {owner}."
        taken[folder] = f"stage {stage.name!r}"
    for stage in stages:
        for path in (absolute(run_dir, path) for path in stage.inputs):
            for folder, owner in taken.items():
                if path == folder or folder in path.parents or path in folder.parents:
                    yield (
                        f"Stage {stage.name!r}: input {path} overlaps {folder}, which {owner} rewrites; "
                        "what another stage makes is named in `needs`, not as an input."
                    )


def _outside(folder: Path, run_dir: Path) -> str | None:
    """Why emptying `folder` could delete something that is not this run's, or None."""
    root = absolute(run_dir, Path())
    if root not in folder.parents:
        return f"is not inside the run directory {root}"
    if folder.resolve() != root.resolve() / folder.relative_to(root):
        return "is reached through a symbolic link"
    if folder.exists() and not folder.is_dir():
        return "exists and is not a folder"
    return None


# --- fingerprints -------------------------------------------------------------------------------------------------------


def fingerprints(ordered: Sequence[Stage], run_dir: Path) -> dict[str, str]:
    """Each stage's fingerprint, from what `in_order` returned.

    It covers command, environment, folder, contents of the inputs, the needed stages' fingerprints and our version. The
    run directory's own path does not enter, so that a finished run can be moved. Raises `PaftError` for missing inputs.
    """
    missing = [
        f"Stage {stage.name!r}: input {absolute(run_dir, path)} does not exist."
        for stage in ordered
        for path in stage.inputs
        if not absolute(run_dir, path).exists()
    ]
    raise_if_any(missing)
    neutral = _Neutral(run_dir)
    digests: dict[Path, str] = {}  # the base model is the input of many stages and is read once
    prints: dict[str, str] = {}
    for stage in ordered:
        paths = [absolute(run_dir, path) for path in stage.inputs]
        for path in paths:
            if path not in digests:
                digests[path] = _content(path, neutral)
        described = {
            "version": __version__,
            # One interpreter has several names (python, python3), and which one started us must not matter.
            "command": ["{python}" if part == sys.executable else neutral.text(part) for part in stage.command],
            "environment": {key: neutral.text(value) for key, value in stage.environment.items()},
            "folder": neutral.text(str(absolute(run_dir, stage.folder))),
            "inputs": [digests[path] for path in paths],
            "needs": [prints[need] for need in stage.needs],
        }
        prints[stage.name] = fingerprint([json.dumps(described, sort_keys=True)])
    return prints


class _Neutral:
    """Replaces the run directory's path, as given and with links resolved, where it ends as a path does."""

    def __init__(self, run_dir: Path) -> None:
        root = absolute(run_dir, Path())
        paths = sorted({os.fsencode(root), os.fsencode(root.resolve())}, key=len, reverse=True)
        self.pattern = re.compile(rb"(?:%s)(?=[/\s\"',:]|$)" % b"|".join(re.escape(path) for path in paths))

    def bytes(self, content: bytes) -> bytes:
        return self.pattern.sub(b"{run}", content)

    def text(self, content: str) -> str:
        return os.fsdecode(self.bytes(os.fsencode(content)))


def _content(path: Path, neutral: _Neutral) -> str:
    """A digest of a file, or of a folder's files with their relative names (links to folders are not followed)."""
    if not path.is_dir():
        if path.stat().st_size > _SMALL:
            return file_digest(path)
        return hashlib.sha256(neutral.bytes(path.read_bytes())).hexdigest()
    parts: list[str] = []
    for file in sorted(path.rglob("*")):
        if not file.is_dir():
            parts += [file.relative_to(path).as_posix(), _content(file, neutral) if file.exists() else "broken link"]
    return fingerprint(parts)


# --- markers ------------------------------------------------------------------------------------------------------------


def read_marker(run_dir: Path, name: str) -> Marker | None:
    """The marker of the stage `name`, or None when there is none that can be trusted."""
    try:
        content = json.loads(marker_path(run_dir, name).read_text(encoding="utf-8"))
        if content["schema"] != MARKER_SCHEMA or content["name"] != name:
            return None
        return Marker(name, str(content["fingerprint"]), float(content["seconds"]), str(content["finished_at"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None  # half a marker is no marker: the stage runs again


def write_marker(run_dir: Path, name: str, stage_fingerprint: str, seconds: float) -> Marker:
    """Say that the stage `name` is done; raises `OSError` when that cannot be written."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    marker = Marker(name, stage_fingerprint, round(seconds, 3), now)
    write_json(marker_path(run_dir, name), {"schema": MARKER_SCHEMA, **vars(marker)})
    return marker


def outdated(ordered: Sequence[Stage], run_dir: Path, prints: Mapping[str, str]) -> list[Stage]:
    """The stages that must run: no marker, another fingerprint, a missing folder, or one that they need must run."""
    found: dict[str, Stage] = {}
    for stage in ordered:
        marker = read_marker(run_dir, stage.name)
        current = marker is not None and marker.fingerprint == prints[stage.name]
        if not current or not absolute(run_dir, stage.folder).is_dir() or not found.keys().isdisjoint(stage.needs):
            found[stage.name] = stage
    return list(found.values())


def forget(stages: Iterable[Stage], run_dir: Path) -> None:
    """Remove the markers of `stages`, which are about to run.

    Before the first of them starts: killed half-way, a later stage must not pass for up to date although what it was
    made from has been made anew.
    """
    for stage in stages:
        marker_path(run_dir, stage.name).unlink(missing_ok=True)


def prepare_folder(stage: Stage, run_dir: Path, stage_fingerprint: str) -> bool:
    """Make the stage's folder ready to start in: empty, unless the stage resumes an attempt with the same fingerprint.

    Returns whether an earlier attempt is kept. Raises `PaftError`, and deletes nothing, for a folder that is not this run's.
    """
    folder = absolute(run_dir, stage.folder)
    if problem := _outside(folder, run_dir):
        raise PaftError(f"Stage {stage.name!r}: output folder {folder} {problem}; nothing was deleted.")
    note = run_dir / MARKERS / f"{stage.name}.started"
    kept = stage.resumes and note.exists() and note.read_text(encoding="utf-8") == stage_fingerprint
    if not kept:
        note.unlink(missing_ok=True)
        if folder.exists():
            shutil.rmtree(folder)
        write_text(note, stage_fingerprint)
    folder.mkdir(parents=True, exist_ok=True)
    return kept
