"""This machine: what is installed, the device that tensors go to, memory that is used again instead of being asked for anew."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from paft_plugin.errors import PaftError, first_line

CPU_INFO = Path("/proc/cpuinfo")
_UNITS = {
    "bfloat16": {"avx512_bf16", "amx_bf16", "bf16"},
    "float16": {"avx512_fp16", "amx_fp16", "asimdhp"},
}
"""torch's dtype → what Linux calls the units of x86 and Arm that multiply in it."""
_CLEARLY = 1.25
"""Times that half precision must be faster by to be taken: it is less exact, and the next process must decide the same."""

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


@cache
def is_fast_on_cpu(dtype: str) -> bool:
    """Whether this CPU says that it multiplies in a half precision (torch's name), and does so faster than in float32.

    Without such units torch converts every tensor back and forth: a forward pass takes 5 to 8 times as long.
    """
    said = CPU_INFO.read_text(encoding="utf-8", errors="replace") if CPU_INFO.is_file() else ""
    if not has_units(dtype, said):
        return False
    return _seconds_of_product("float32") > _CLEARLY * _seconds_of_product(dtype)


def has_units(dtype: str, cpu_info: str) -> bool:
    """Whether a CPU lists units for a dtype among its `flags` (x86) or `Features` (Arm) in `/proc/cpuinfo`."""
    lines = [line.partition(":") for line in cpu_info.splitlines()]
    flags = next((set(rest.split()) for key, _, rest in lines if key.strip() in ("flags", "Features")), set())
    return bool(flags & _UNITS.get(dtype, set()))


def _seconds_of_product(dtype: str) -> float:
    """The shortest of three products of matrices as a small model has them, after one to warm up."""
    import torch

    left, right = (torch.ones(shape, dtype=getattr(torch, dtype)) for shape in ((512, 1024), (1024, 1024)))
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def free_memory() -> int | None:
    """Bytes of main memory that could be had without swapping; None if the system does not say."""
    info = Path("/proc/meminfo")
    lines = info.read_text(encoding="ascii").splitlines() if info.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


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
