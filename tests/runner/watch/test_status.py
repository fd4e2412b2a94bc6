"""Where a run stands, told from outside, while it runs and after each way in which it can end."""

from __future__ import annotations

import io
import json
import signal
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.cells import cell_len
from rich.console import Console

from paft_plugin.cli import paft
from paft_plugin.errors import PaftError
from paft_plugin.runner.local import LocalExecutor
from paft_plugin.runner.lock import locked, look
from paft_plugin.runner.scheduler import run_stages
from paft_plugin.runner.stages import Resources, Stage, marker_path
from paft_plugin.runner.watch.display import show, show_until_ended
from paft_plugin.runner.watch.events import EventLog
from paft_plugin.runner.watch.status import RunStatus, StatusReader
from tests.runner.tools import PATIENCE, READER, Driver, contents, pids_in, python, wait_for

TRAIN = "print('3/10, 14 s left', flush=True)\n(out / 'here').touch()\ntime.sleep(120)"


def plan() -> list[Stage]:
    return [
        python("data", ""),
        python("sft-l1", TRAIN, needs=("data",), resources=Resources(1)),
        python("merge", "", needs=("sft-l1",)),
    ]


def under_way(driver: Driver, run_dir: Path) -> RunStatus:
    """Start `plan` in a process of its own, and return its status once its training is at work."""
    driver.start(plan(), run_dir, devices=("0",))
    wait_for((run_dir / "out" / "sft-l1" / "here").exists, "the training")
    return StatusReader(run_dir, READER).read()


def states(status: RunStatus) -> dict[str, str]:
    return {stage.name: stage.state for stage in status.stages}


def shown(status: RunStatus, width: int = 80) -> str:
    screen = io.StringIO()
    show(status, Console(file=screen, width=width))
    return screen.getvalue()


def test_a_run_under_way(run_dir: Path, driver: Driver) -> None:
    status = under_way(driver, run_dir)
    assert (status.state, status.pid) == ("running", driver.started[0].pid)
    assert states(status) == {"data": "done", "sft-l1": "running", "merge": "waiting"}
    training = status.stages[1]
    assert training.where == "GPU 0"
    assert training.metrics["done"] == 3
    text = shown(status)
    assert f"runs for {status.seconds:.1f} s (process {status.pid}" in " ".join(text.split())
    assert "1 of 3 stages through" in " ".join(text.split())
    for part in ("GPU 0", "item 3 of 10", "14.0 s left"):
        assert part in " ".join(text.split())
    assert max(map(cell_len, text.splitlines())) <= 80


def test_looking_changes_nothing_and_keeps_nobody_out(run_dir: Path, driver: Driver) -> None:
    under_way(driver, run_dir)
    driver.started[0].send_signal(signal.SIGINT)
    driver.started[0].wait(PATIENCE)
    before = contents(run_dir)
    StatusReader(run_dir).read()
    assert contents(run_dir) == before
    stop = threading.Event()

    def stare() -> None:
        while not stop.is_set():
            look(run_dir)

    thread = threading.Thread(target=stare)
    thread.start()
    try:
        for _ in range(20):
            with locked(run_dir, patience=PATIENCE):
                assert look(run_dir)[0]
    finally:
        stop.set()
        thread.join()
    assert not look(run_dir)[0]


@pytest.mark.parametrize(("signum", "state"), [(signal.SIGINT, "interrupted"), (signal.SIGKILL, "killed")])
def test_a_run_that_was_stopped(run_dir: Path, driver: Driver, signum: int, state: str) -> None:
    under_way(driver, run_dir)
    driver.started[0].send_signal(signum)
    driver.started[0].wait(PATIENCE)
    status = wait_for(lambda: (s := StatusReader(run_dir).read()).state != "ending" and s, "its processes to end")
    assert status.state == state
    assert states(status) == {"data": "done", "sft-l1": "stopped", "merge": "waiting"}
    assert "run the same command again to go on" in shown(status)


def test_a_killed_run_whose_processes_are_still_there(run_dir: Path, driver: Driver) -> None:
    stubborn = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
(out / f'pid-{os.getpid()}').touch()
time.sleep(120)
"""
    driver.start([python("a", stubborn)], run_dir, grace=1000.0)
    driver.pids.update(pids_in(run_dir / "out" / "a", 1))
    driver.started[0].kill()
    driver.started[0].wait(PATIENCE)
    status = StatusReader(run_dir).read()
    assert status.state == "ending"
    assert "have not ended yet" in " ".join(shown(status).split())


def test_a_failed_run_shows_the_end_of_the_log_and_the_way_on(run_dir: Path) -> None:
    stages = [
        python("good", ""),
        python("bad", "sys.exit('the hamster has stopped')", needs=("good",)),
    ]
    with pytest.raises(PaftError):
        run_stages(stages, run_dir, LocalExecutor(), [EventLog(run_dir)])
    status = StatusReader(run_dir, READER).read()
    assert (status.state, states(status)) == ("failed", {"good": "done", "bad": "failed"})
    text = " ".join(shown(status).split())
    assert "Stage 'bad' (Stage bad) failed with exit code 1." in text
    assert "| the hamster has stopped" in text
    assert "Feed the hamster." in text
    assert "when the cause is mended, run the same command again" in text


def test_a_finished_run_and_one_that_did_nothing_and_a_marker_that_is_gone(run_dir: Path) -> None:
    stages = [python("a", ""), python("b", "", needs=("a",))]
    for state in ("done", "up to date"):
        run_stages(stages, run_dir, LocalExecutor(), [EventLog(run_dir)])
        status = StatusReader(run_dir).read()
        assert (status.state, states(status)) == ("finished", {"a": state, "b": state})
        assert all(stage.seconds is not None for stage in status.stages)
    marker_path(run_dir, "b").unlink()
    assert states(StatusReader(run_dir).read()) == {"a": "up to date", "b": "gone"}


def test_a_run_that_has_just_locked_its_folder_is_starting(run_dir: Path) -> None:
    run_stages([python("a", "")], run_dir, LocalExecutor(), [EventLog(run_dir)])
    with locked(run_dir, patience=0):
        status = StatusReader(run_dir).read()
    assert (status.state, status.stages) == ("starting", ())


def test_following_ends_with_the_run(run_dir: Path, driver: Driver) -> None:
    under_way(driver, run_dir)
    screen = io.StringIO()
    ended: list[RunStatus] = []
    thread = threading.Thread(
        target=lambda: ended.append(show_until_ended(StatusReader(run_dir), Console(file=screen, width=80)))
    )
    thread.start()
    wait_for(lambda: "runs for" in screen.getvalue(), "the first look")
    driver.started[0].send_signal(signal.SIGINT)
    thread.join(PATIENCE)
    assert [status.state for status in ended] == ["interrupted"]
    assert "was interrupted" in screen.getvalue()


def test_the_command_writes_json_and_refuses_a_folder_without_a_run(run_dir: Path, tmp_path: Path) -> None:
    run_stages([python("a", "")], run_dir, LocalExecutor(), [EventLog(run_dir)])
    file = tmp_path / "status.json"
    result = CliRunner().invoke(paft, ["status", str(run_dir), "--json", str(file)])
    assert result.exit_code == 0
    assert "has finished" in " ".join(result.output.split())
    written = json.loads(file.read_text())
    assert written == json.loads(json.dumps(StatusReader(run_dir).read().content()))
    assert (written["schema"], written["state"], written["stages"][0]["state"]) == (1, "finished", "done")
    for folder in (tmp_path / "nowhere", tmp_path):
        refused = CliRunner().invoke(paft, ["status", str(folder)])
        assert refused.exit_code == 2
        assert f"Error: There is no run in {folder}" in refused.output
        assert "Name the output_dir of a paft.yml." in " ".join(refused.output.split())
