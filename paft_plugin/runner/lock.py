"""One run at a time in a run directory, and nothing of a killed run beside the next one.

A run holds `<run dir>/.lock`, and so do the guards of its stages on this machine. A guard on another machine holds its stage's
own file instead, its *hold* `.stages/<name>.hold`. What is killed lets go of what it held, so that a new run need only wait until
both kinds are free. The files stay, locked or not: without them two could lock two files of one name.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paft_plugin.errors import PaftError
from paft_plugin.files import is_locked, lock_file
from paft_plugin.reading import MissingFileError, read_bytes
from paft_plugin.runner.stages import MARKERS

LOCK = ".lock"
_HOLD = ".hold"
_LONGEST_PID = 10  # digits
_AGAIN = 0.1  # seconds between two tries
_GLANCE = 0.3  # seconds: somebody who only looks (`look`) holds the lock for less


# --- the run's lock -----------------------------------------------------------------------------------------------------


@contextmanager
def locked(run_dir: Path, patience: float) -> Iterator[int]:
    """Hold the run's lock and yield its file descriptor.

    For what a killed run started, here or elsewhere, we wait up to `patience` seconds. Raises `PaftError` when that has not
    ended by then, or another run is at work; `OSError` when no lock can be made.
    """
    lock = _acquire(run_dir, patience)
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n{socket.gethostname()}\n".encode(), 0)
        _await_holds(run_dir, patience)
        yield lock
    finally:
        os.close(lock)


def _acquire(run_dir: Path, patience: float) -> int:
    now = time.monotonic()
    glance, deadline = now + _GLANCE, now + patience
    while True:
        try:
            return lock_file(run_dir / LOCK)
        except BlockingIOError:
            holder, machine = _holder(run_dir)
            elsewhere = machine not in ("", socket.gethostname())
            if time.monotonic() > glance and (holder is None or elsewhere or alive(holder)):
                by = f"process {holder or 'unknown'}" + (f" on {machine}" if elsewhere else "")
                raise PaftError(
                    f"Another run ({by}) is at work in {run_dir}: wait for it or stop it, or choose another output directory."
                ) from None
            if time.monotonic() > deadline:
                raise PaftError(
                    f"The run in {run_dir} (process {holder}) was killed, but processes that it started have not ended "
                    "yet: wait for them or stop them, then run the same command again."
                ) from None
            time.sleep(_AGAIN)


def look(run_dir: Path) -> tuple[bool, int | None]:
    """Whether the run directory is locked, and the process that locked it last, if any. Nothing is written.

    Somebody who wants the lock just now does not notice: `locked` tries for longer than a look takes.
    """
    return is_locked(run_dir / LOCK), _holder(run_dir)[0]


def _holder(run_dir: Path) -> tuple[int | None, str]:
    """The process that locked the directory last, and its machine; None and nothing while it is about to write them."""
    try:
        written = read_bytes(run_dir / LOCK).decode("utf-8", errors="replace").splitlines()
    except MissingFileError:
        written = []
    pid, machine = (*written, "", "")[:2]
    return int(pid) if pid.isdecimal() and len(pid) < _LONGEST_PID else None, machine


def alive(pid: int) -> bool:
    """Whether there is such a process on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


# --- the holds of guards on other machines --------------------------------------------------------------------------------


def hold_path(run_dir: Path, name: str) -> Path:
    """The hold of the stage `name`."""
    return run_dir / MARKERS / f"{name}{_HOLD}"


def take_hold(hold: Path, patience: float) -> int:
    """Lock `hold` and return its descriptor; `BlockingIOError` when another guard has it after `patience` seconds."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return lock_file(hold)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_AGAIN)


def _await_holds(run_dir: Path, patience: float) -> None:
    deadline = time.monotonic() + patience
    for hold in sorted((run_dir / MARKERS).glob(f"*{_HOLD}")):
        while is_locked(hold):
            if time.monotonic() > deadline:
                raise PaftError(
                    f"A run in {run_dir} was killed, and what it started for the stage {hold.name.removesuffix(_HOLD)!r}, "
                    "maybe on another machine, has not ended yet: wait for it or stop it, then run the same command again. "
                    f"When that machine itself is gone, delete {hold}."
                )
            time.sleep(_AGAIN)
