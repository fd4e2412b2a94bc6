"""One run at a time in a run directory."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paft_plugin.errors import PaftError
from paft_plugin.pipeline.stages import MARKERS

LOCK = ".lock"
_GLANCE = 0.3  # seconds: somebody who only looks (`look`) holds the lock for less
_HOLD = ".hold"
_AGAIN = 0.1  # seconds between two tries


@contextmanager
def locked(run_dir: Path, patience: float) -> Iterator[int]:
    """Hold `<run dir>/.lock` and yield its file descriptor.

    The guards of the stages hold it too, or, on other machines, the hold of their stage: so that it outlives a killed run
    until its last process is gone; for that we wait up to `patience` seconds. Raises `PaftError` when another run is at
    work, `OSError` when no lock can be made.
    """
    lock = os.open(run_dir / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        deadline = time.monotonic() + patience
        _acquire(lock, run_dir, deadline)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n{socket.gethostname()}\n".encode(), 0)
        _await_holds(run_dir, deadline)
        yield lock
    finally:
        os.close(lock)


def hold_path(run_dir: Path, name: str) -> Path:
    """The file that the guard of the stage `name` keeps locked while it lives, where it cannot inherit the run's own lock."""
    return run_dir / MARKERS / f"{name}{_HOLD}"


def take_hold(hold: Path, patience: float) -> int:
    """Lock `hold` and return its descriptor; `BlockingIOError` when another guard has it after `patience` seconds."""
    deadline = time.monotonic() + patience
    descriptor = os.open(hold, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except OSError as error:
            if not isinstance(error, BlockingIOError) or time.monotonic() > deadline:
                os.close(descriptor)
                raise
            time.sleep(_AGAIN)


def is_held(hold: Path) -> bool:
    """Whether a guard, on whatever machine, has `hold` locked."""
    try:
        os.close(take_hold(hold, patience=0))
    except BlockingIOError:
        return True
    return False


def _await_holds(run_dir: Path, deadline: float) -> None:
    for hold in sorted((run_dir / MARKERS).glob(f"*{_HOLD}")):
        while is_held(hold):
            if time.monotonic() > deadline:
                raise PaftError(
                    f"A run in {run_dir} was killed, and what it started for the stage {hold.name.removesuffix(_HOLD)!r}, "
                    "maybe on another machine, has not ended yet: wait for it or stop it, then run the same command again. "
                    f"When that machine itself is gone, delete {hold}."
                )
            time.sleep(_AGAIN)


def _acquire(lock: int, run_dir: Path, deadline: float) -> None:
    glance = time.monotonic() + _GLANCE
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder, host = _holder(lock)
            at_work = holder is None or host not in ("", socket.gethostname()) or alive(holder)
            if at_work and time.monotonic() > glance:
                by = f"process {holder or 'unknown'}" + (f" on {host}" if host else "")
                raise PaftError(
                    f"Another run ({by}) is at work in {run_dir}: wait for it or stop it, or choose another output directory."
                ) from None
            if time.monotonic() > deadline:
                raise PaftError(
                    f"The run in {run_dir} (process {holder}) was killed, but processes that it started have not ended "
                    "yet: wait for them or stop them, then run the same command again."
                ) from None
            time.sleep(_AGAIN)


def _holder(lock: int) -> tuple[int | None, str]:
    """Process id and machine of whoever wrote into the lock last; None when they are just about to."""
    pid, _, host = os.pread(lock, 512, 0).decode(errors="replace").partition("\n")
    return int(pid) if pid.isdecimal() else None, host.strip()


def look(run_dir: Path) -> tuple[bool, int | None]:
    """Whether the run directory is locked, and the process that locked it last, if any. Nothing is written.

    The lock is asked for as a reader would, and let go at once: `locked` tries for longer than that.
    """
    try:
        lock = os.open(run_dir / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False, None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False, _holder(lock)[0]
    except BlockingIOError:
        return True, _holder(lock)[0]
    finally:
        os.close(lock)


def alive(pid: int) -> bool:
    """Whether there is such a process on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
