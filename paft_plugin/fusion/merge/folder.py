"""A folder that is there whole or not at all: written under another name beside its place, and renamed in the end."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from paft_plugin.errors import PaftError
from paft_plugin.files import lock_file

LOCK = ".lock"


@contextmanager
def whole_folder(place: Path, beside: Collection[str] = ()) -> Iterator[Path]:
    """Yield a new folder to write to; when the context ends well, it is at `place`, and when it fails, it is gone.

    What a killed process left is removed by the next one for the same place.

    Args:
        place: Where the folder will be.
        beside: Names of files that may be at `place` already; they stay, and end up in the new folder.

    Raises:
        PaftError: `place` is taken, cannot be written, or another process writes for it at the moment.
    """
    place = place.absolute()
    check_free(place, beside)
    partial = place.with_name(f".{place.name}.partial")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir(exist_ok=True)
        lock = lock_file(partial / LOCK)
    except BlockingIOError:
        raise PaftError(f"{place}: another merge is writing it. Wait for that, or give another folder.") from None
    except OSError as error:
        raise PaftError(
            f"{place}: cannot be written ({error.strerror}). Give a folder that you may write to."
        ) from None
    try:
        _empty(partial)
        yield partial
        _sync(partial)
        check_free(place, beside)
        for name in beside:
            if (place / name).exists():
                (place / name).rename(partial / name)
        (partial / LOCK).unlink()
        partial.rename(place)
        _sync_entry(place.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def check_free(place: Path, beside: Collection[str] = ()) -> None:
    """Refuse a place where something else than `beside` is already.

    Raises:
        PaftError: It is a file, or a folder that is not empty.
    """
    if place.is_dir():
        if any(path.name not in beside for path in place.iterdir()):
            raise PaftError(f"{place}: exists and is not empty. Give another folder, or delete this one first.")
    elif place.exists() or place.is_symlink():
        raise PaftError(f"{place}: a file is there. Give another name for the folder.")


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != LOCK:
            entry.unlink()


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            _sync_entry(path)
    _sync_entry(folder)


def _sync_entry(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
