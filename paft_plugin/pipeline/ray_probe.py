"""What a cluster's node is asked before a stage may run there; sent to it as it stands here, since the node may have none of it."""

from __future__ import annotations

import fcntl
import os
import sys


def look_around(probe: str, text: str) -> dict[str, str]:
    """Facts about the node that this runs on.

    Args:
        probe: A file in the run directory that the driver wrote and keeps locked.
        text: What it wrote.

    Returns:
        `python` and `paft` (their versions, the latter empty when not installed), `executable`, `run_dir` (empty when the
        node sees it and may write, else why not), `locks` (`yes` when the driver's lock is felt here).
    """
    try:
        from paft_plugin import __version__
    except ImportError:
        __version__ = ""
    facts = {
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "executable": sys.executable,
        "paft": __version__,
        "run_dir": "",
        "locks": "",
    }
    try:
        descriptor = os.open(probe, os.O_RDWR)
    except OSError as error:
        return facts | {"run_dir": error.strerror or str(error)}
    try:
        if os.read(descriptor, len(text) + 1).decode(errors="replace") != text:
            return facts | {"run_dir": "another folder has the same path there"}
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return facts | {"locks": "yes"}
    except OSError as error:
        return facts | {"locks": error.strerror or str(error)}
    finally:
        os.close(descriptor)
    return facts
