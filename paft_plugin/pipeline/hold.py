"""Holds: a lock for each stage whose guard cannot inherit the run's own, because it lives on another machine.

A guard keeps its stage's hold locked until the last process of the command is gone, whatever became of the driver, the
connection or Ray's word on the node: as long as it is taken, nobody else may write into the stage's folder. That needs
storage on which `flock` works between machines.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from paft_plugin.errors import PaftError
from paft_plugin.pipeline.stages import MARKERS

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
