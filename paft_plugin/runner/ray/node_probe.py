"""What a node of a cluster is asked before a stage may run there; sent to it whole, since it may have none of our code."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys


def look_around(probe: str, text: str, package: str) -> dict[str, str]:
    """Facts about the node that this runs on; `probe` is a file in the run directory that the driver locked, with `text` in it.

    They are `python` and `package` (their versions, the latter empty when not installed), `executable`, `run_dir` (empty when the
    node sees it and may write, else why not), `locks` (`yes` when the driver's lock is felt here).
    """
    # In a process as a stage's command is one: in this one Ray has put the driver's working directory first in `sys.path`.
    code = f"import {package}; print({package}.__version__)"
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    facts = {
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "executable": sys.executable,
        "package": asked.stdout.strip() if asked.returncode == 0 else "",
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
