"""A program that knows the runner alone: `python any_dag.py RUN_DIR [ADDRESS]` runs three commands, here or on a Ray cluster.

`numbers` copies the file `input`; `slow` waits for a file `go`; `both` needs the two. Prints what became of them, and which
modules of the package were imported for it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from paft_plugin import __version__
from paft_plugin.errors import PaftError
from paft_plugin.runner.local import LocalExecutor
from paft_plugin.runner.ray.cluster import RayExecutor
from paft_plugin.runner.ray.connect import Package
from paft_plugin.runner.scheduler import run_stages
from paft_plugin.runner.stages import Stage
from paft_plugin.runner.watch.display import Display
from paft_plugin.runner.watch.events import EventLog
from paft_plugin.runner.watch.status import StatusReader

SLOW = """
import os, time
from pathlib import Path
Path('slow/pid').write_text(str(os.getpid()))
end = time.monotonic() + 60
while not Path('go').exists() and time.monotonic() < end: time.sleep(0.01)
Path('slow/pid').unlink()
Path('slow/x').write_text(Path('go').read_text())
"""
STAGES = [
    Stage("numbers", "copy numbers", ("cp", "input", "numbers/x"), Path("numbers"), inputs=(Path("input"),)),
    Stage("slow", "wait", (sys.executable, "-c", SLOW), Path("slow")),
    Stage("both", "sort both", ("sort", "-o", "both/x", "numbers/x", "slow/x"), Path("both"), ("numbers", "slow")),
]


def main(run_dir: Path, address: str) -> None:
    executor = (
        RayExecutor(address, Package("paft-plugin", "paft_plugin", __version__), grace=1.0)
        if address
        else LocalExecutor(grace=1.0)
    )
    results = run_stages(STAGES, run_dir, executor, [Display(run_dir), EventLog(run_dir, __version__)])
    said = {
        "statuses": {result.name: result.status for result in results},
        "state": StatusReader(run_dir).read().state,
        "modules": [name for name in sys.modules if name.partition(".")[0] == "paft_plugin"],
    }
    print(json.dumps(said))


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), "".join(sys.argv[2:]))
    except PaftError as error:
        sys.exit(str(error))
