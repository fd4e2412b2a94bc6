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
from paft_plugin.runner.stages import MARKERS

_ENDING = ".hold"
_AGAIN = 0.1  # seconds between two tries


def hold_path(run_dir: Path, name: str) -> Path:
    """The hold of the stage `name`; the file stays, locked or not: without it two guards could hold two files of one name."""
    return run_dir / MARKERS / f"{name}{_ENDING}"


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
    """Whether a guard, on whatever machine, has `hold`."""
    try:
        os.close(take_hold(hold, patience=0))
    except BlockingIOError:
        return True
    return False


def await_holds(run_dir: Path, patience: float) -> None:
    """Wait until the guards of a killed run are through; raises `PaftError` when one is not after `patience` seconds."""
    deadline = time.monotonic() + patience
    for hold in sorted((run_dir / MARKERS).glob(f"*{_ENDING}")):
        while is_held(hold):
            if time.monotonic() > deadline:
                raise PaftError(
                    f"A run in {run_dir} was killed, and what it started for the stage {hold.name.removesuffix(_ENDING)!r}, "
                    "maybe on another machine, has not ended yet: wait for it or stop it, then run the same command again. "
                    f"When that machine itself is gone, delete {hold}."
                )
            time.sleep(_AGAIN)


LOCK = ".lock"
_GLANCE = 0.3  # seconds: somebody who only looks (`look`) holds the lock for less


@contextmanager
def locked(run_dir: Path, patience: float) -> Iterator[int]:
    """Hold `<run dir>/.lock` and yield its file descriptor.

    The guards of the stages hold it too, or, on other machines, their holds, so that it outlives a killed run until its
    last process is gone; for that we wait up to `patience` seconds. Raises `PaftError` when another run is at work,
    `OSError` when no lock can be made.
    """
    lock = os.open(run_dir / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        _acquire(lock, run_dir, patience)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n{socket.gethostname()}\n".encode(), 0)
        await_holds(run_dir, patience)
        yield lock
    finally:
        os.close(lock)


def _acquire(lock: int, run_dir: Path, patience: float) -> None:
    now = time.monotonic()
    glance, deadline = now + _GLANCE, now + patience
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder = _holder(lock)
            elsewhere = (machine := _machine(lock)) not in ("", socket.gethostname())
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
            time.sleep(0.1)


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
        return False, _holder(lock)
    except BlockingIOError:
        return True, _holder(lock)
    finally:
        os.close(lock)


def _holder(lock: int) -> int | None:
    """The process that wrote its number; None while it is just about to."""
    written = _written(lock)
    return int(written[0]) if written and written[0].isdecimal() else None


def _machine(lock: int) -> str:
    """Where that process is; empty when it is just about to say so."""
    return "".join(_written(lock)[1:2])


def _written(lock: int) -> list[str]:
    return os.pread(lock, 512, 0).decode(errors="replace").splitlines()


def alive(pid: int) -> bool:
    """Whether there is such a process on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
