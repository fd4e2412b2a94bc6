"""`events.jsonl`: what runs write there, that kills leave it whole, and that readers survive what a power cut leaves."""

from __future__ import annotations

import itertools
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from paft_plugin.errors import PaftError
from paft_plugin.runner.devices import Device
from paft_plugin.runner.local import LocalExecutor
from paft_plugin.runner.scheduler import run_stages
from paft_plugin.runner.stages import Resources, Stage
from paft_plugin.runner.watch import events
from paft_plugin.runner.watch.events import Event, EventLog, RunEnded, StageAdvanced, StageFailed, Stopping, read_events
from tests.runner.tools import PATIENCE, READER, Driver, python, wait_for

COUNTS = "print('3/10, 7 s left')\nuntil(lambda: Path('go').exists())\nprint('10/10, 0 s left')"


def lines(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]


def run(stages: list[Stage], run_dir: Path) -> list[Event]:
    """Run them, and return the events of this run alone."""
    before = len(read_events(run_dir))
    log = EventLog(run_dir, "1.0", READER)
    run_stages(stages, run_dir, LocalExecutor([Device("0", "GPU 0")]), [log])
    new = read_events(run_dir)[before:]
    assert {event.run for event in new} == {log.run}
    return new


def short(found: list[Event]) -> list[str]:
    return [f"{event.event} {getattr(event, 'stage', getattr(event, 'outcome', ''))}".strip() for event in found]


def test_a_run_and_the_next_one(run_dir: Path) -> None:
    run_dir.mkdir()
    (run_dir / "go").touch()
    sft = python("sft", COUNTS, resources=Resources(1))
    stages = [sft, python("merge", "", needs=("sft",))]
    first = run(stages, run_dir)
    assert short(first) == [
        "run_started", "planned", "stage_started sft", "stage_done sft", "stage_started merge", "stage_done merge",
        "run_ended finished",
    ]  # fmt: skip
    written = lines(run_dir)
    assert all(line["schema"] == 1 for line in written)
    assert (written[0]["pid"], written[0]["version"]) == (os.getpid(), "1.0")
    assert written[1]["stages"] == [
        {"name": "sft", "title": "Stage sft", "needs": [], "reason": "not run yet"},
        {"name": "merge", "title": "Stage merge", "needs": ["sft"], "reason": "not run yet"},
    ]
    assert [line["where"] for line in written if line["event"] == "stage_started"] == ["GPU 0", ""]
    done = '{"done": 10, "total": 10, "remaining": 0.0, "share": null}'
    assert [json.dumps(line["metrics"]) for line in written if line["event"] == "stage_done"] == [done, "{}"]
    again = run(stages, run_dir)
    assert short(again) == [
        "run_started", "planned", "stage_skipped sft", "stage_skipped merge", "run_ended finished"
    ]  # fmt: skip
    assert len(lines(run_dir)) == len(first) + len(again), "runs append"


def test_progress_is_noted_while_a_stage_runs(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "PROGRESS_EVERY", 0.0)
    watch = f"until(lambda: '\"progress\"' in Path({events.FILE!r}).read_text())\nPath('go').touch()"
    found = run([python("sft", COUNTS), python("watch", watch)], run_dir)
    progress = [event.metrics for event in found if isinstance(event, StageAdvanced)]
    assert {"done": 3, "total": 10, "remaining": 7.0, "share": None} in progress
    assert all(one != other for one, other in itertools.pairwise(progress)), "nothing is told twice"


def test_a_failure_and_an_interrupt(run_dir: Path, driver: Driver) -> None:
    with pytest.raises(PaftError):
        run([python("bad", "sys.exit(3)")], run_dir)
    *_, failed, ended = read_events(run_dir)
    assert isinstance(failed, StageFailed)
    assert (failed.event, failed.stage, failed.reason) == ("stage_failed", "bad", "failed with exit code 3")
    assert isinstance(ended, RunEnded)
    assert ended.outcome == "failed"
    assert ended.reason == "Stage 'bad' (Stage bad) failed with exit code 3."
    slow = driver.start([python("slow", "(out / 'here').touch()\ntime.sleep(120)")], run_dir)
    wait_for((run_dir / "out" / "slow" / "here").exists, "the stage")
    slow.send_signal(signal.SIGINT)
    assert slow.wait(PATIENCE) == 130
    *_, stopping, ended = read_events(run_dir)
    assert isinstance(stopping, Stopping)
    assert stopping.stages == ("slow",)
    assert isinstance(ended, RunEnded)
    assert ended.outcome == "interrupted"


def test_a_torn_line_is_passed_over_and_stays_alone(run_dir: Path) -> None:
    run([python("a", "")], run_dir)
    file = run_dir / "events.jsonl"
    whole = read_events(run_dir)
    for torn in (
        '{"schema": 1, "time": "20',
        "é".encode()[:1],
        '{"schema": 99, "time": "", "run": "x", "event": "?"}',
        '{"schema": 1, "time": "", "run": "x", "event": "of a later version"}',
        "[]",
    ):
        with file.open("ab") as content:
            content.write(torn if isinstance(torn, bytes) else torn.encode())
        assert read_events(run_dir) == whole
        whole += run([python("a", "")], run_dir)
        assert read_events(run_dir) == whole, "the next run's first line is not glued to it"


def test_each_line_is_one_write(run_dir: Path, driver: Driver) -> None:
    """Killed at any moment, a run leaves whole lines."""
    for _ in range(3):
        parent = driver.start([python(name, "") for name in "abc"], run_dir)
        wait_for((run_dir / "events.jsonl").exists, "the first event")
        parent.kill()
        parent.wait(PATIENCE)
    content = (run_dir / "events.jsonl").read_text()
    assert content.endswith("\n")
    assert len(read_events(run_dir)) == len(content.splitlines())
