"""Memory that this process frees is used again, instead of being given back to the system and asked for anew."""

from __future__ import annotations

import ctypes
import sys

# Of glibc's mallopt (malloc.h).
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


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
