"""Stages with a family of processes below them, of which none may be left behind."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.runner.tools import Driver, alive, pids_in, python

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs a subreaper and /proc")

# A command with a worker, a worker's worker, and one that left the process group and the session, as daemons do.
FAMILY = """
def sleep(name):
    {ignoring}
    (out / f'pid-{{os.getpid()}}').touch()
    time.sleep(120)
import signal
if os.fork() == 0:
    if os.fork() == 0: sleep('grandchild')
    sleep('child')
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0: sleep('daemon')
    os._exit(0)
sleep('command')
"""
POLITE = FAMILY.format(ignoring="pass")
STUBBORN = FAMILY.format(ignoring="signal.signal(signal.SIGTERM, signal.SIG_IGN)")
MEMBERS = 4


def family(driver: Driver, run_dir: Path, code: str, grace: float = 5.0) -> list[int]:
    """Start a run of two such stages after one that ends well; return the process ids of all their members."""
    stages = [python("first", ""), python("a", code, needs=("first",)), python("b", code, needs=("first",))]
    driver.start(stages, run_dir, grace)
    pids = [pid for name in ("a", "b") for pid in pids_in(run_dir / "out" / name, MEMBERS)]
    driver.pids.update(pids)
    return pids


def no_longer(pids: list[int]) -> bool:
    return not any(alive(pid) for pid in pids)
