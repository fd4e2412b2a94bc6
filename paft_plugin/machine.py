"""This machine: what is installed, the device that tensors go to, memory that is used again instead of being asked for anew."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from paft_plugin.errors import PaftError, first_line

# Of glibc's mallopt (malloc.h).
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def installed(packages: Iterable[str]) -> dict[str, str]:
    """Package → version, of those that are installed."""
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def usable_device(device: str, where: str) -> str:
    """`device`, once a tensor could be put there; `auto` is a GPU where there is one.

    Raises:
        PaftError: It is not to be had; `where` is the key or option that names it.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = first_line(error)
        raise PaftError(f"{where}: {device} is not to be had here ({why}). Give cpu, or leave it out.") from None
    return device


def usable_devices(devices: str | Sequence[str], where: str) -> list[str]:
    """`devices`, each as `usable_device`; `auto` is every GPU that there is.

    Raises:
        PaftError: One is not to be had, or they are of two kinds, which merge and score differently.
    """
    import torch

    if devices == "auto" and torch.cuda.device_count() > 1:
        return [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    named = [usable_device(device, where) for device in ([devices] if isinstance(devices, str) else devices)]
    if len({device.partition(":")[0] for device in named}) > 1:
        raise PaftError(f"{where}: {', '.join(named)} are of two kinds, which score differently. Give one kind.")
    return named


def reuse_freed_memory() -> None:
    """Tell the C library to keep what this process frees, from here to its end; does nothing where it is not glibc.

    Merging and inspecting allocate and free tensors of the same few sizes all the time. glibc maps each large one anew, and
    the system zeroes its pages at the first touch: half of the time of a DARE merge. What a process holds at most hardly grows.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
