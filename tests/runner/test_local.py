"""This machine as an executor: workers, devices, and what a command finds. Real processes throughout."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from paft_plugin.errors import PaftError
from paft_plugin.runner.devices import Device
from paft_plugin.runner.executor import Job
from paft_plugin.runner.local import LocalExecutor
from paft_plugin.runner.markers import read_marker
from paft_plugin.runner.scheduler import run_stages
from paft_plugin.runner.stages import Resources
from paft_plugin.runner.watch.display import Display
from tests.runner.tools import RECORD, TIMES, meet, python, run, times, wait_for


def test_one_worker_runs_one_at_a_time(run_dir: Path) -> None:
    stages = [python(name, TIMES + "time.sleep(0.2)\n" + RECORD) for name in "abc"]
    run(stages, run_dir, workers=1)
    spans = sorted(times(run_dir, name) for name in "abc")
    assert spans[0][1] <= spans[1][0]
    assert spans[1][1] <= spans[2][0]
    with pytest.raises(PaftError, match="one worker"):
        run(stages, run_dir, workers=0)


def test_a_command_gets_its_environment_no_input_and_default_signals(run_dir: Path) -> None:
    code = """
import signal
print('from', 'print')
os.system('echo from a shell >&2')
assert sys.stdin.read() == ''
kept = {name: os.environ[name] for name in ('PYTHONUNBUFFERED', 'OMP_NUM_THREADS', 'ONLY_HERE')}
(out / 'seen').write_text(repr((kept, os.getcwd(), os.getpgid(0) == os.getpid(), len(os.listdir('/dev/fd')))))
assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
"""
    stage = python("seen", code, environment={"ONLY_HERE": "1"})
    run([stage], run_dir, variables={"OMP_NUM_THREADS": "7", "ONLY_HERE": "0"})
    expected = {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "7", "ONLY_HERE": "1"}
    # Four descriptors: the three standard ones and that of the listing itself; not the lock, not the lifeline.
    assert (run_dir / "out" / "seen" / "seen").read_text() == repr((expected, str(run_dir), True, 4))
    log = (run_dir / "logs" / "seen.log").read_text()
    assert log.startswith("$ ")
    assert "from print\n" in log
    assert "from a shell\n" in log


def test_each_stage_sees_its_own_devices_and_one_that_wants_none_sees_none(run_dir: Path) -> None:
    say = "(out / 'seen').write_text(os.environ['CUDA_VISIBLE_DEVICES'] + '/' + os.environ['MKL_NUM_THREADS'])\n"
    stages = [
        python("sft", say + meet("dpo"), resources=Resources(1)),
        python("dpo", say + meet("sft"), resources=Resources(1)),
        python("both", say, needs=("sft",), resources=Resources(2)),
        python("recipe", say),
    ]
    devices = [Device("GPU-1", "GPU 0"), Device("7", "GPU 7")]
    shown = io.StringIO()
    watcher = Display(run_dir, Console(file=shown))
    executor = LocalExecutor(devices, workers=3, threads=5)
    run_stages(stages, run_dir, executor, [watcher], variables={"CUDA_VISIBLE_DEVICES": "0,1,2"})
    seen = {stage.name: (run_dir / "out" / stage.name / "seen").read_text() for stage in stages}
    assert seen == {"sft": "GPU-1/5", "dpo": "7/5", "both": "GPU-1,7/5", "recipe": "/5"}


def test_a_stage_starts_where_nothing_is_kept_for_one_before_it(run_dir: Path) -> None:
    """Two empty devices are kept for a stage that waits: a later one joins what runs on the third, where both fit."""
    (run_dir / "logs").mkdir(parents=True)
    (run_dir / "out").mkdir()
    executor = LocalExecutor([Device(str(n), f"GPU {n}", 80 * 10**9) for n in range(3)], workers=3, grace=0.1)
    lock = os.open(run_dir / "lock", os.O_RDWR | os.O_CREAT)
    both = python("both", "", resources=Resources(2))
    started = []
    for name, waiting in (("first", []), ("second", [both])):
        stage = python(name, "time.sleep(120)", resources=Resources(1, 10**9))
        assert executor.has_room(stage, waiting)
        started.append(executor.start(Job(stage, run_dir, run_dir / "logs" / name, append=False), lock))
    assert [running.where for running in started] == ["GPU 0", "GPU 0"]
    assert executor.has_room(both, [])
    for running in started:
        running.kill()
        wait_for(running.poll, "it to end")
    os.close(lock)


def test_more_devices_than_there_are_is_an_error_before_anything_starts(run_dir: Path) -> None:
    stages = [python("a", ""), python("b", "", resources=Resources(2))]
    with pytest.raises(PaftError, match=r"Stage 'b': it wants 2 devices at once, and this run has 1 device\."):
        run_stages(stages, run_dir, LocalExecutor([Device("0", "GPU 0")]))
    assert not run_dir.exists()
    with pytest.raises(PaftError) as caught:
        LocalExecutor(workers=0, threads=0, share_device="always")  # type: ignore[arg-type]
    assert len(caught.value.problems) == 3


def test_the_engine_and_the_guard_need_no_heavy_import() -> None:
    modules = "paft_plugin.runner.local, paft_plugin.runner.scheduler"
    code = f"import sys, {modules}; print([m for m in ('torch', 'transformers', 'axolotl') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert shown.stdout.strip() == "[]"


def test_a_marker_says_what_the_largest_of_a_stage_s_processes_held(run_dir: Path) -> None:
    """A small one right after shows that nothing of the one before, or of whoever started it, is counted."""
    held = (
        "import subprocess; subprocess.run([sys.executable, '-c', 'b = bytearray(150 << 20); b[::4096] = b[::4096]'])\n"
    )
    run([python("large", held), python("small", "pass", needs=("large",))], run_dir)
    large, small = (read_marker(run_dir, name) for name in ("large", "small"))
    assert large is not None
    assert large.peak_memory is not None
    assert 150 << 20 < large.peak_memory < 250 << 20
    assert small is not None
    assert small.peak_memory is not None
    assert small.peak_memory < 100 << 20
