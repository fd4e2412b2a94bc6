"""Stages made of real Python processes, and a driver that runs them in a process of its own, to be killed."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from paft_plugin import __version__
from paft_plugin.runner.executor import StageResult
from paft_plugin.runner.local import LocalExecutor
from paft_plugin.runner.logs import LogReader, StageProgress
from paft_plugin.runner.ray.connect import Package
from paft_plugin.runner.scheduler import run_stages
from paft_plugin.runner.stages import Stage
from paft_plugin.runner.watch.display import Display

TIMES = "import time, json\nbegin = time.time_ns()\n"
RECORD = "(out / 'times.json').write_text(json.dumps([begin, time.time_ns()]))\n"
PATIENCE = 60.0  # seconds: generous, a hang is all it must tell from slowness

# What a stage's code begins with; nothing waits for ever, so that a broken pipeline fails its tests and does not hang them.
PRELUDE = f"""
import os, sys, time
from pathlib import Path
out = Path({{!r}})
def until(true):
    end = time.monotonic() + {PATIENCE}
    while not true():
        if time.monotonic() > end: sys.exit('waited in vain')
        time.sleep(0.01)
"""

# Reads a description of stages from a file and runs them, as the command line would.
DRIVER = """
import json, signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from paft_plugin.errors import PaftError
from paft_plugin.runner.devices import Device
from paft_plugin.runner.local import LocalExecutor
from paft_plugin.runner.ray.cluster import RayExecutor
from paft_plugin.runner.scheduler import run_stages
from paft_plugin.runner.stages import Resources, Stage
from paft_plugin.runner.watch.display import Display
from paft_plugin.runner.watch.events import EventLog
from tests.runner.tools import PACKAGE, READER
described = json.loads(Path(sys.argv[1]).read_text())
stages = [
    Stage(s["name"], s["name"], tuple(s["command"]), Path(s["folder"]), tuple(s["needs"]), resources=Resources(s["devices"]))
    for s in described["stages"]
]
devices = [Device(name, f"GPU {name}") for name in described["devices"]]
try:
    run_dir = Path(described["run_dir"])
    grace, address = described["grace"], described["address"]
    executor = RayExecutor(address, PACKAGE, grace=grace) if address else LocalExecutor(devices, grace=grace)
    run_stages(stages, run_dir, executor, [Display(run_dir, reader=READER), EventLog(run_dir, "1.0", READER)], reader=READER)
except KeyboardInterrupt:
    sys.exit(130)
except PaftError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
"""


PACKAGE = Package("paft-plugin", "paft_plugin", __version__)


def follow(log: Path) -> Callable[[], StageProgress]:
    """Reads `3/10, 4 s left`, of which a stage's log holds one a line."""

    def now() -> StageProgress:
        text = log.read_text() if log.exists() else ""
        told = re.findall(r"^(\d+)/(\d+), (\d+) s left", text, re.MULTILINE)
        if not told:
            return StageProgress()
        done, total, remaining = map(int, told[-1])
        figures = {"done": done, "total": total, "remaining": float(remaining), "share": None}
        return StageProgress(f"item {done} of {total}", figures)

    return now


def hints(lines: Sequence[str]) -> list[str]:
    return ["Feed the hamster."] if any("hamster" in line for line in lines) else []


READER = LogReader(follow, hints)


def wait_for(true: Callable[[], Any], what: str) -> Any:
    """The first true value of `true()`; fails with `what` when there is none in time."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if value := true():
            return value
        time.sleep(0.02)
    pytest.fail(f"waited in vain for {what}")


def alive(pid: int) -> bool:
    """Whether a process still runs; one that only waits to be collected by its parent does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def pids_in(folder: Path, count: int) -> list[int]:
    """The process ids that a stage's processes wrote as file names `pid-<n>`, once there are `count` of them."""

    def found() -> list[int]:
        pids = [int(path.name.removeprefix("pid-")) for path in folder.glob("pid-*")]
        return pids if len(pids) >= count else []

    pids: list[int] = wait_for(found, f"{count} processes in {folder}")
    return pids


def python(name: str, code: str, *, needs: tuple[str, ...] = (), **others: Any) -> Stage:
    """A stage that runs `code`, in the run directory, with `out` (its folder), `until` and `Path` defined."""
    folder = Path("out") / name
    return Stage(
        name, f"Stage {name}", (sys.executable, "-c", PRELUDE.format(str(folder)) + code), folder, needs, **others
    )


def meet(other: str) -> str:
    """Code that ends only when the other stage has begun, too (or fails)."""
    return f"""
(out / 'here').touch()
until(lambda: Path('out/{other}/here').exists())
"""


def times(run_dir: Path, name: str) -> tuple[int, int]:
    begin, end = json.loads((run_dir / "out" / name / "times.json").read_text())
    return begin, end


def run(stages: list[Stage], run_dir: Path, workers: int = 2, **others: object) -> tuple[list[StageResult], str]:
    """Run on something that is not a terminal; return the results and what was shown."""
    shown = io.StringIO()
    watcher = Display(run_dir, Console(file=shown, width=60))
    results = run_stages(stages, run_dir, LocalExecutor(workers=workers), [watcher], **others)  # type: ignore[arg-type]
    return results, shown.getvalue()


def contents(folder: Path) -> dict[str, bytes]:
    """What a folder holds: relative path → bytes."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


class Driver:
    """Starts runs in processes of their own and lets none of their processes outlive the test.

    With an `address` they run on the Ray cluster there.
    """

    def __init__(self, folder: Path, address: str = "") -> None:
        self.folder, self.address = folder, address
        self.started: list[subprocess.Popen[bytes]] = []
        self.pids: set[int] = set()

    def start(
        self,
        stages: list[Stage],
        run_dir: Path,
        grace: float = 5.0,
        output: int | None = None,
        devices: tuple[str, ...] = (),
    ) -> subprocess.Popen[bytes]:
        described = [
            {
                "name": s.name,
                "command": s.command,
                "folder": str(s.folder),
                "needs": s.needs,
                "devices": s.resources.devices,
            }
            for s in stages
        ]
        path = self.folder / "run.json"
        run = {
            "stages": described,
            "run_dir": str(run_dir),
            "grace": grace,
            "devices": devices,
            "address": self.address,
        }
        path.write_text(json.dumps(run))
        with self.output.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-u", "-c", DRIVER, str(path)],
                stdout=file if output is None else output,
                stderr=subprocess.STDOUT,
                cwd=Path(__file__).parents[2],  # it imports this module
                start_new_session=True,
            )
        self.started.append(process)
        return process

    @property
    def output(self) -> Path:
        return self.folder / "output"

    def close(self) -> None:
        """Only after a failed test is there anything to kill."""
        for process in self.started:
            if process.poll() is None:
                self.pids.update(child.pid for child in psutil.Process(process.pid).children(recursive=True))
                process.kill()
                process.wait(PATIENCE)
        for pid in self.pids:
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(pid).kill()
