"""Interrupted and killed runs: no process stays behind, nothing finished is lost, the next run ends the same."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from paft_plugin.runner.local import LocalExecutor
from paft_plugin.runner.markers import read_marker
from paft_plugin.runner.scheduler import run_stages
from paft_plugin.runner.stages import Resources, Stage
from tests.runner.families import LINUX, MEMBERS, POLITE, STUBBORN, family, no_longer
from tests.runner.tools import PATIENCE, Driver, alive, contents, pids_in, python, wait_for


@LINUX
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_run_and_all_its_processes(run_dir: Path, driver: Driver, signum: int) -> None:
    pids = family(driver, run_dir, POLITE)
    parent = driver.started[0]
    parent.send_signal(signum)
    assert parent.wait(PATIENCE) == 130
    assert no_longer(pids), "they are gone before the run itself ends"
    assert read_marker(run_dir, "first") is not None
    assert read_marker(run_dir, "a") is None


@LINUX
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_two_trainings_on_two_devices_leave_no_process(run_dir: Path, driver: Driver, signum: int) -> None:
    """With what real ones have below them: a process for each rank, and workers that load data."""
    train = "(out / 'device').write_text(os.environ['CUDA_VISIBLE_DEVICES'])\n" + POLITE
    stages = [python(name, train, resources=Resources(devices=1)) for name in ("sft", "dpo")]
    parent = driver.start(stages, run_dir, devices=("3", "5"))
    pids = [pid for name in ("sft", "dpo") for pid in pids_in(run_dir / "out" / name, MEMBERS)]
    driver.pids.update(pids)
    assert [(run_dir / "out" / name / "device").read_text() for name in ("sft", "dpo")] == ["3", "5"]
    parent.send_signal(signum)
    parent.wait(PATIENCE)
    wait_for(lambda: no_longer(pids), "all of their processes to be gone")


@LINUX
def test_a_closed_standard_output_ends_the_run_and_all_its_processes(run_dir: Path, driver: Driver) -> None:
    """As in `axolotl paft demo | head -1`: the first line that cannot be written is the end."""
    reader, writer = os.pipe()
    short = python("short", "until(lambda: Path('go').exists())")
    parent = driver.start([short, python("a", STUBBORN)], run_dir, 0.5, output=writer)
    os.close(writer)
    driver.pids.update(pids_in(run_dir / "out" / "a", MEMBERS))
    os.close(reader)
    (run_dir / "go").touch()
    assert parent.wait(PATIENCE) == 1
    assert no_longer(list(driver.pids))
    assert read_marker(run_dir, "short") is not None


@LINUX
def test_after_the_grace_even_the_stubborn_are_gone(run_dir: Path, driver: Driver) -> None:
    pids = family(driver, run_dir, STUBBORN, grace=0.5)
    driver.started[0].send_signal(signal.SIGTERM)
    assert driver.started[0].wait(PATIENCE) == 130
    assert no_longer(pids)


@LINUX
def test_a_second_interrupt_does_not_wait_for_the_grace(run_dir: Path, driver: Driver) -> None:
    pids = family(driver, run_dir, STUBBORN, grace=1000.0)
    parent = driver.started[0]
    parent.send_signal(signal.SIGINT)
    wait_for(lambda: "stopping" in driver.output.read_text(), "the run to be stopping")
    parent.send_signal(signal.SIGINT)
    assert parent.wait(PATIENCE) == 130
    assert no_longer(pids)


@LINUX
@pytest.mark.parametrize("code", [POLITE, STUBBORN], ids=["polite", "stubborn"])
def test_a_killed_run_leaves_no_orphan_and_its_lock_waits_for_them(run_dir: Path, driver: Driver, code: str) -> None:
    pids = family(driver, run_dir, code, grace=1.0)
    driver.started[0].kill()
    driver.started[0].wait(PATIENCE)
    run_stages(
        [python("next", "")], run_dir, LocalExecutor(grace=30.0)
    )  # gets the lock once the killed run's guards are through
    assert no_longer(pids)


@LINUX
def test_a_killed_guard_takes_its_command_along(run_dir: Path, driver: Driver) -> None:
    pids = family(driver, run_dir, POLITE)
    parent = psutil.Process(driver.started[0].pid)
    guards = parent.children()
    assert len(guards) == 2
    guards[0].kill()
    wait_for(lambda: "was killed by SIGKILL" in driver.output.read_text(), "the run to notice")
    driver.started[0].send_signal(signal.SIGINT)
    assert driver.started[0].wait(PATIENCE) == 130
    in_sight = [pid for pid in pids if alive(pid)]
    assert len(in_sight) <= 1, "of the killed guard's stage, only what had left its session is out of reach"


@LINUX
def test_a_command_ends_with_its_guard_even_when_nobody_is_left_to_see_it(run_dir: Path, driver: Driver) -> None:
    pids = family(driver, run_dir, STUBBORN, grace=1000.0)
    parent = driver.started[0]
    guards = psutil.Process(parent.pid).children()
    commands = [child.pid for guard in guards for child in guard.children() if child.pid == os.getpgid(child.pid)]
    assert len(commands) == 2
    assert set(commands) < set(pids)
    for process in (parent, *guards):
        process.kill()
    parent.wait(PATIENCE)
    wait_for(lambda: no_longer(commands), "the two commands to end")


@LINUX
def test_what_a_finished_command_left_behind_is_ended(run_dir: Path) -> None:
    code = POLITE.replace("sleep('command')", f"until(lambda: len(list(out.glob('pid-*'))) == {MEMBERS - 1})")
    results = run_stages([python("a", code)], run_dir, LocalExecutor())
    assert results[0].status == "done"
    assert no_longer(pids_in(run_dir / "out" / "a", MEMBERS - 1))


def chain() -> list[Stage]:
    """Three stages; the second stops half-way, with its output half written, for as long as `hold` is there."""
    half = """
with (out / 'x').open('w') as file:
    for i in range(100):
        file.write(f'{i}\\n'); file.flush()
        if i == 50: (out / f'pid-{os.getpid()}').touch()
        until(lambda: i != 50 or not Path('hold').exists())
for path in out.glob('pid-*'): path.unlink()
(out / 'files').write_text(' '.join(sorted(path.name for path in out.iterdir())))
"""
    return [
        python("first", "(out / 'x').write_text('1')\nPath('count').open('a').write('first ')"),
        python("second", half, needs=("first",)),
        python("third", "(out / 'x').write_text(Path('out/second/x').read_text())", needs=("second",)),
    ]


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_after_a_kill_half_way_the_next_run_ends_the_same(
    run_dir: Path, tmp_path: Path, driver: Driver, signum: int
) -> None:
    undisturbed = tmp_path / "undisturbed"
    run_stages(chain(), undisturbed, LocalExecutor())
    run_dir.mkdir()
    (run_dir / "hold").touch()
    parent = driver.start(chain(), run_dir)
    pids_in(run_dir / "out" / "second", 1)
    parent.send_signal(signum)
    parent.wait(PATIENCE)
    (run_dir / "hold").unlink()
    results = run_stages(chain(), run_dir, LocalExecutor())
    assert [result.status for result in results] == ["skipped", "done", "done"]
    assert (run_dir / "count").read_text() == "first "
    assert contents(run_dir / "out") == contents(undisturbed / "out")
    for name in ("first", "second", "third"):
        here, there = read_marker(run_dir, name), read_marker(undisturbed, name)
        assert here is not None
        assert there is not None
        assert here.fingerprint == there.fingerprint


def test_a_dependant_does_not_pass_for_up_to_date_after_a_kill(run_dir: Path, driver: Driver) -> None:
    """Its own fingerprint is as before, but what it was made from has been made anew."""
    run_stages(chain(), run_dir, LocalExecutor())
    (run_dir / "out" / "second" / "x").unlink()
    (run_dir / "out" / "second" / "files").unlink()
    (run_dir / "out" / "second").rmdir()
    (run_dir / "hold").touch()
    parent = driver.start(chain(), run_dir)
    pids_in(run_dir / "out" / "second", 1)
    parent.kill()
    parent.wait(PATIENCE)
    assert read_marker(run_dir, "first") is not None
    assert read_marker(run_dir, "third") is None
