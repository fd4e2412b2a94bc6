"""Running stages: order, overlap, skipping, failures, the lock. Real processes throughout."""

from __future__ import annotations

import dataclasses
import signal
from functools import partial
from pathlib import Path

import pytest

from paft_plugin.errors import PaftError
from paft_plugin.runner.executor import StageResult
from paft_plugin.runner.local import LocalExecutor
from paft_plugin.runner.markers import read_marker
from paft_plugin.runner.scheduler import run_stages
from paft_plugin.runner.stages import Stage, log_path
from paft_plugin.runner.watch.events import EventLog
from paft_plugin.runner.watch.status import StatusReader
from tests.runner.tools import PATIENCE, RECORD, TIMES, Driver, contents, meet, python, run, times, wait_for


def statuses(results: list[StageResult]) -> dict[str, str]:
    return {result.name: result.status for result in results}


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
