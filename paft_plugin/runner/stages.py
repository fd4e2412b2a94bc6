"""What a stage is, and in which order stages run: a stage is a command with an output folder. Nothing here starts a process."""

from __future__ import annotations

import os
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from paft_plugin.errors import PaftError, raise_if_any

MARKERS, LOGS = ".stages", "logs"
"""Folders of the run directory that belong to the runner itself."""
STAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""What a stage may be called: its log and its marker bear the name."""


@dataclass(frozen=True)
class Resources:
    """What a stage takes while it runs, as far as it decides where and when it may."""

    devices: int = 0
    """GPUs that it wants, or, where there are none, nothing."""
    device_memory: int = 0
    """Bytes that it is estimated to take on each of them; 0: unknown, so that it shares its devices with nobody. Where there
    are no GPUs, what it takes of the main memory instead."""
    memory: int = 0
    """Bytes of main memory that it is estimated to take beside that; 0: unknown, or little."""


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
    versions: Mapping[str, str] = field(default_factory=dict)
    """Programs that the command runs → their versions, which matter to the result."""
    more_folders: tuple[Path, ...] = ()
    """Output folders of its own beside `folder`, of a stage whose results have a folder each."""
    resumes: bool = False
    """The command itself goes on from what an interrupted attempt with the same fingerprint left in `folder`."""
    keeps: bool = False
    """The command itself knows what in its folders is still of use, whatever has changed: they are never emptied."""
    resources: Resources = Resources()
    """Where and when it may run; no part of its fingerprint."""

    @property
    def folders(self) -> tuple[Path, ...]:
        """All its output folders."""
        return (self.folder, *self.more_folders)


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
    runner must not empty.
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


def needing(name: str, needs: Mapping[str, Sequence[str]]) -> list[str]:
    """The stages that cannot run without `name`, near and far; `needs`: each stage → what it needs, in the order of the run."""
    found = [name]
    for other, needed in needs.items():
        if not set(found).isdisjoint(needed):
            found.append(other)
    return found[1:]


def _name_problems(stages: Sequence[Stage]) -> Iterable[str]:
    seen: set[str] = set()
    for stage in stages:
        if not STAGE_NAME.fullmatch(stage.name):
            yield f"Stage name {stage.name!r} cannot name a file: use letters, digits, '.', '_' and '-'."
        if stage.name.lower() in seen:  # in lower case, because a marker's file system may not tell case apart
            yield f"Stage name {stage.name!r} is used twice."
        seen.add(stage.name.lower())
        if not stage.command:
            yield f"Stage {stage.name!r} has no command."


def _folder_problems(stages: Sequence[Stage], run_dir: Path) -> Iterable[str]:
    """A stage that starts again empties its folder: so it must be its own, in the run directory, and hold no input."""
    owners = {absolute(run_dir, Path(name)): "the pipeline itself" for name in (MARKERS, LOGS)}
    above = {parent: folder for folder in owners for parent in folder.parents}
    for stage, place in [(each, place) for each in stages for place in each.folders]:
        folder = absolute(run_dir, place)
        if problem := outside(folder, run_dir):
            yield f"Stage {stage.name!r}: output folder {folder} {problem}."
        for other in _overlapping(folder, owners, above):
            yield f"Stage {stage.name!r}: output folder {folder} overlaps {other}, which belongs to {owners[other]}."
        owners[folder] = f"stage {stage.name!r}"
        above |= dict.fromkeys(folder.parents, folder)
    for stage in stages:
        for path in (absolute(run_dir, path) for path in stage.inputs):
            for folder in _overlapping(path, owners, above):
                yield (
                    f"Stage {stage.name!r}: input {path} overlaps {folder}, which {owners[folder]} rewrites; "
                    "what another stage makes is named in `needs`, not as an input."
                )


def _overlapping(path: Path, owned: Container[Path], above: Mapping[Path, Path]) -> list[Path]:
    """The owned folders that a path is or lies in, and one that it holds; looked up, since a study has hundreds of them."""
    return [folder for folder in (path, *path.parents) if folder in owned] + ([above[path]] if path in above else [])


def outside(folder: Path, run_dir: Path) -> str | None:
    """Why emptying `folder` could delete something that is not this run's, or None."""
    root = absolute(run_dir, Path())
    if root not in folder.parents:
        return f"is not inside the run directory {root}"
    if folder.resolve() != root.resolve() / folder.relative_to(root):
        return "is reached through a symbolic link"
    if folder.exists() and not folder.is_dir():
        return "exists and is not a folder"
    return None
