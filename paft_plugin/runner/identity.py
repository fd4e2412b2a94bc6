"""What a stage's result depends on: its command, the contents of its inputs, the stages it needs, versions of programs."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from paft_plugin.errors import raise_if_any
from paft_plugin.files import file_digest, fingerprint
from paft_plugin.runner.stages import Stage, absolute

# Bytes: configs and recipes, which may name the run directory, are smaller; weights and data are larger.
_SMALL = 1 << 20
# Seconds: a file system's clock ticks in milliseconds, so that a file may change twice and look as if it had once.
_SETTLED = 1.0


@dataclass(frozen=True)
class Identity:
    """All that decides a stage's result; equal ones have equal fingerprints."""

    parts: Mapping[str, str]
    """What a person calls it (`its command`, a file, `stage sft`) → text or digest."""

    @property
    def fingerprint(self) -> str:
        """16 hex digits."""
        return fingerprint([json.dumps(sorted(self.parts.items()))])

    def differences(self, before: Mapping[str, str]) -> list[str]:
        """What is not as it was in `before`, the parts of an earlier identity."""
        names = [*self.parts, *(name for name in before if name not in self.parts)]
        return [name for name in names if self.parts.get(name) != before.get(name)]


def identities(ordered: Sequence[Stage], run_dir: Path, given: Mapping[Path, str] | None = None) -> dict[str, Identity]:
    """Each stage's identity, of stages in order.

    The run directory's own path does not enter, so that a finished run can be moved. `given` is the text of inputs that are about
    to be written, by absolute path, whatever lies there now.

    Raises:
        PaftError: Inputs are missing.
    """
    given = given or {}
    missing = [
        f"Stage {stage.name!r}: input {absolute(run_dir, path)} does not exist."
        for stage in ordered
        for path in stage.inputs
        if absolute(run_dir, path) not in given and not absolute(run_dir, path).exists()
    ]
    raise_if_any(missing)
    neutral = _Neutral(run_dir)
    # The base model is the input of many stages and is read once.
    digests = _digests({absolute(run_dir, path) for stage in ordered for path in stage.inputs} - set(given), neutral)
    digests |= {path: _digest(text.encode("utf-8"), neutral) for path, text in given.items()}
    found: dict[str, Identity] = {}
    for stage in ordered:
        # One interpreter has several names (python, python3), and which one started us must not matter.
        command = ["{python}" if part == sys.executable else neutral.text(part) for part in stage.command]
        parts = {
            **{f"the version of {program}": version for program, version in stage.versions.items()},
            "its command": json.dumps(command),
            "its folder": neutral.text(" ".join(str(absolute(run_dir, folder)) for folder in stage.folders)),
            **{f"variable {key}": neutral.text(value) for key, value in stage.environment.items()},
            **{
                neutral.text(str(path)).removeprefix("{run}/"): digests[absolute(run_dir, path)]
                for path in stage.inputs
            },
            **{f"stage {need}": found[need].fingerprint for need in stage.needs},
        }
        found[stage.name] = Identity(parts)
    return found


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


def _digests(paths: set[Path], neutral: _Neutral) -> dict[Path, str]:
    """A digest of each file, or of a folder's files with their relative names (links to folders are not followed)."""
    files = {path: _files(path) for path in paths}
    wanted = list({file for found in files.values() for file in found})
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:  # hashing frees the interpreter
        of = dict(zip(wanted, pool.map(lambda file: _content(file, neutral), wanted), strict=True))
    digests = {}
    for path, found in files.items():
        if path.is_dir():
            digests[path] = fingerprint(
                part for file in found for part in (file.relative_to(path).as_posix(), of[file])
            )
        else:
            digests[path] = of[path]
    return digests


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    # What is made by whoever reads it first: Python's compiled code, and what `datasets` computes of a data set it saved.
    files = (file for file in sorted(path.rglob("*")) if not file.is_dir() and "__pycache__" not in file.parts)
    return [file for file in files if not (file.match("cache-*.arrow") and (file.parent / "state.json").is_file())]


def _content(file: Path, neutral: _Neutral) -> str:
    if not file.exists():
        return "broken link"
    found = file.stat()
    if found.st_size > _SMALL:
        if time.time() - found.st_ctime < _SETTLED:
            return file_digest(file)
        return _large(file, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))
    return _digest(file.read_bytes(), neutral)


@cache
def _large(file: Path, _state: tuple[int, ...]) -> str:
    """A file's digest; while its state stays the same, it is read only once, although one run asks for it more than once."""
    return file_digest(file)


def _digest(content: bytes, neutral: _Neutral) -> str:
    return hashlib.sha256(neutral.bytes(content)).hexdigest()
