"""Running stages: order, overlap, skipping, failures, the lock. Real processes throughout."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from paft_plugin.errors import PaftError
from paft_plugin.runner.devices import Device
from paft_plugin.runner.executor import Job
from paft_plugin.runner.local import LocalExecutor
from paft_plugin.runner.markers import read_marker
from paft_plugin.runner.scheduler import run_stages
from paft_plugin.runner.stages import Resources, Stage, log_path
from paft_plugin.runner.watch.display import Display
from paft_plugin.runner.watch.events import EventLog
from paft_plugin.runner.watch.status import StatusReader
from paft_plugin.runner.watch.watcher import StageResult
from tests.runner.tools import PATIENCE, Driver, contents, python, wait_for

TIMES = "import time, json\nbegin = time.time_ns()\n"
RECORD = "(out / 'times.json').write_text(json.dumps([begin, time.time_ns()]))\n"


def run(stages: list[Stage], run_dir: Path, workers: int = 2, **others: object) -> tuple[list[StageResult], str]:
    """Run on something that is not a terminal; return the results and what was shown."""
    shown = io.StringIO()
    watcher = Display(run_dir, Console(file=shown, width=60))
    results = run_stages(stages, run_dir, LocalExecutor(workers=workers), [watcher], **others)  # type: ignore[arg-type]
    return results, shown.getvalue()


def statuses(results: list[StageResult]) -> dict[str, str]:
    return {result.name: result.status for result in results}


def times(run_dir: Path, name: str) -> tuple[int, int]:
    begin, end = json.loads((run_dir / "out" / name / "times.json").read_text())
    return begin, end


def meet(other: str) -> str:
    """Code that ends only when the other stage has begun, too (or fails)."""
    return f"""
(out / 'here').touch()
until(lambda: Path('out/{other}/here').exists())
"""


def test_stages_run_in_order_and_independent_ones_overlap(run_dir: Path) -> None:
    stages = [
        python("last", TIMES + RECORD, needs=("left", "right")),
        python("left", TIMES + meet("right") + RECORD, needs=("first",)),
        python("right", TIMES + meet("left") + RECORD, needs=("first",)),
        python("first", TIMES + RECORD),
    ]
    results, _ = run(stages, run_dir)
    assert [result.name for result in results] == ["last", "left", "right", "first"]
    first, left, right, last = (times(run_dir, name) for name in ("first", "left", "right", "last"))
    assert first[1] <= min(left[0], right[0])
    assert max(left[0], right[0]) < min(left[1], right[1]), "the two branches overlap in time"
    assert last[0] >= max(left[1], right[1])


def test_one_worker_runs_one_at_a_time(run_dir: Path) -> None:
    stages = [python(name, TIMES + "time.sleep(0.2)\n" + RECORD) for name in "abc"]
    run(stages, run_dir, workers=1)
    spans = sorted(times(run_dir, name) for name in "abc")
    assert spans[0][1] <= spans[1][0]
    assert spans[1][1] <= spans[2][0]
    with pytest.raises(PaftError, match="one worker"):
        run(stages, run_dir, workers=0)


def test_what_is_up_to_date_is_skipped_and_a_change_runs_it_and_its_dependants(run_dir: Path, tmp_path: Path) -> None:
    config = tmp_path / "the config.yml"
    config.write_text("lr: 1")
    stages = [
        python("sft", f"(out / 'x').write_text(Path({str(config)!r}).read_text())", inputs=(config,)),
        python("dpo", "(out / 'x').write_text('dpo')"),
        python("merge", "(out / 'x').write_text(Path('out/sft/x').read_text() + '!')", needs=("sft", "dpo")),
    ]
    results, _ = run(stages, run_dir)
    assert statuses(results) == {"sft": "done", "dpo": "done", "merge": "done"}
    dpo_marker = read_marker(run_dir, "dpo")
    (run_dir / "out" / "sft" / "stale").touch()
    again, shown = run(stages, run_dir)
    assert statuses(again) == {"sft": "skipped", "dpo": "skipped", "merge": "skipped"}
    assert [r.seconds for r in again] == [r.seconds for r in results], "a skipped stage tells what it took when it ran"
    assert "skipped" in shown
    assert "start" not in shown
    config.write_text("lr: 2")
    changed, _ = run(stages, run_dir)
    assert statuses(changed) == {"sft": "done", "dpo": "skipped", "merge": "done"}
    assert read_marker(run_dir, "dpo") == dpo_marker
    assert contents(run_dir / "out") == {"sft/x": b"lr: 2", "dpo/x": b"dpo", "merge/x": b"lr: 2!"}


def test_a_failure_shows_its_log_and_keeps_what_is_finished(run_dir: Path) -> None:
    noise = "for i in range(40): print(f'\\x1b[31mstep {i}\\x1b[0m')\nprint('10%\\r99%')\nsys.exit('it broke')"
    good = python("good", "(out / 'x').touch()")
    never = python("never", "", needs=("bad",))
    with pytest.raises(PaftError) as caught:
        run([good, python("bad", noise, needs=("good",)), never], run_dir)
    message = str(caught.value)
    assert "'bad' (Stage bad) failed with exit code 1" in message
    assert "step 39" in message
    assert "step 0\n" not in message
    assert "99%" in message
    assert "10%" not in message
    assert "it broke" in message
    assert "\x1b" not in message
    assert str(run_dir / "logs" / "bad.log") in message
    assert "run the same command again" in message
    assert not (run_dir / "out" / "never").exists()
    mended = python("bad", "(out / 'x').touch()", needs=("good",))
    results, _ = run([good, mended, never], run_dir)
    assert statuses(results) == {"good": "skipped", "bad": "done", "never": "done"}


def test_a_failure_takes_along_only_what_needs_it_and_all_failures_are_told_together(run_dir: Path) -> None:
    stages = [
        python("bad", "sys.exit(3)"),
        python("beside", "until(lambda: 'stage_failed' in Path('events.jsonl').read_text())\ntime.sleep(0.5)"),
        python("after", "", needs=("bad",)),
        python("far", "", needs=("after", "beside")),
        python("next", "sys.exit(4)", needs=("beside",)),
    ]
    with pytest.raises(PaftError, match=r"(?s)'bad' .*exit code 3.*'next' .*exit code 4") as caught:
        run_stages(stages, run_dir, LocalExecutor(), [EventLog(run_dir)])
    assert len(caught.value.problems) == 2
    assert str(caught.value).count("run the same command again") == 1
    assert read_marker(run_dir, "beside")
    assert not log_path(run_dir, "after").exists()
    assert not log_path(run_dir, "far").exists()
    status = {stage.name: stage for stage in StatusReader(run_dir).read().stages}
    assert {stage.state for stage in (status["after"], status["far"])} == {"waiting"}
    assert {stage.reason for stage in (status["after"], status["far"])} == {"needs bad, which failed"}


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("os.kill(os.getpid(), 9)", r"was killed by SIGKILL \(often: out of memory\)"),
        ("os.kill(os.getpid(), 11)", "was killed by SIGSEGV"),
        ("sys.exit(137)", r"exit code 137, which usually means SIGKILL \(often: out of memory\)"),
        ("os.write(os.open('/dev/full', os.O_WRONLY), b'x')", r"exit code 1\. The disk is full: .* free at"),
    ],
)
def test_how_a_stage_ended_is_told(run_dir: Path, code: str, said: str) -> None:
    with pytest.raises(PaftError, match=said):
        run([python("bad", code)], run_dir)


def test_a_command_that_does_not_exist_is_named(run_dir: Path) -> None:
    with pytest.raises(PaftError, match="cannot run no-such-tool: No such file"):
        run([Stage("bad", "Bad", ("no-such-tool", "x"), Path("out"))], run_dir)


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


def test_a_resuming_stage_finds_what_it_left(run_dir: Path) -> None:
    code = "steps = out / 'steps'\nsteps.open('a').write('x')\nsys.exit(steps.stat().st_size < 3)"
    stage = python("train", code, resumes=True)
    for _ in range(2):
        with pytest.raises(PaftError):
            run([stage], run_dir)
    run([stage], run_dir)
    assert (run_dir / "out" / "train" / "steps").read_text() == "xxx"


def test_a_second_run_is_refused_while_one_is_at_work(run_dir: Path, driver: Driver) -> None:
    first = driver.start([python("slow", "(out / 'here').touch()\ntime.sleep(120)")], run_dir)
    wait_for((run_dir / "out" / "slow" / "here").exists, "the first run")
    with pytest.raises(PaftError, match=rf"Another run \(process {first.pid}\) is at work in"):
        run([python("other", "")], run_dir)
    first.send_signal(signal.SIGINT)
    assert first.wait(PATIENCE) == 130
    run([python("other", "")], run_dir)


def test_inputs_are_prepared_before_they_are_read_and_only_under_the_lock(run_dir: Path, driver: Driver) -> None:
    stage = python("reads", "print(Path('given').read_text())", inputs=(Path("given"),))
    for text, status in (("1", "done"), ("1", "skipped"), ("2", "done")):
        results, _ = run([stage], run_dir, prepare=partial((run_dir / "given").write_text, text))
        assert statuses(results) == {"reads": status}
    other = driver.start([python("slow", "(out / 'here').touch()\ntime.sleep(120)")], run_dir)
    wait_for((run_dir / "out" / "slow" / "here").exists, "the other run")
    with pytest.raises(PaftError, match="Another run"):
        run([stage], run_dir, prepare=partial(pytest.fail, "prepared in another run's directory"))
    other.send_signal(signal.SIGTERM)
    assert other.wait(PATIENCE) == 130


@pytest.mark.parametrize("place", ["file", "proc"])
def test_a_run_directory_that_cannot_be_made_is_one_clear_error(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    run_dir = tmp_path / "file" / "run" if place == "file" else Path("/proc/no-such-folder")
    with pytest.raises(PaftError, match=f"Cannot work in the run directory {run_dir}") as caught:
        run([python("a", "")], run_dir)
    assert len(caught.value.problems) == 1


def test_a_folder_outside_is_refused_and_nothing_runs(run_dir: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    with pytest.raises(PaftError, match="not inside the run directory"):
        run([python("a", ""), dataclasses.replace(python("b", ""), folder=outside)], run_dir)
    assert (outside / "precious").exists()
    assert not run_dir.exists()


def test_the_engine_and_the_guard_need_no_heavy_import() -> None:
    modules = "paft_plugin.runner.local, paft_plugin.runner.scheduler"
    code = f"import sys, {modules}; print([m for m in ('torch', 'transformers', 'axolotl') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert shown.stdout.strip() == "[]"
