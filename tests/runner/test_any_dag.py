"""The runner without PAFT: any commands, restarted and killed, here and on a cluster, with no other room imported."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runner.families import LINUX
from tests.runner.tools import PATIENCE, alive, wait_for

PROGRAM = Path(__file__).with_name("any_dag.py")


class Program:
    """`any_dag.py` in a process of its own."""

    def __init__(self, run_dir: Path, address: str) -> None:
        self.run_dir, self.address = run_dir, address
        self.started: list[subprocess.Popen[str]] = []

    def start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-P", str(PROGRAM), str(self.run_dir), self.address]
        started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.started.append(started)
        return started

    def run(self) -> dict[str, Any]:
        """What it printed in the end."""
        shown, error = self.start().communicate(timeout=2 * PATIENCE)
        assert shown, error
        said: dict[str, Any] = json.loads(shown.splitlines()[-1])
        return said

    def start_until_slow_waits(self) -> tuple[subprocess.Popen[str], int]:
        """The process, once the stage `slow` is at work again, and that stage's process id."""
        (self.run_dir / "go").unlink()
        shutil.rmtree(self.run_dir / "slow", ignore_errors=True)
        started = self.start()
        pid = self.run_dir / "slow" / "pid"
        return started, int(wait_for(lambda: pid.exists() and pid.read_text(), "the stage `slow`"))

    def close(self) -> None:
        for process in self.started:
            process.kill()
            process.communicate()


@pytest.fixture(params=["local", pytest.param("ray", marks=pytest.mark.slow)])
def program(request: pytest.FixtureRequest, run_dir: Path) -> Iterator[Program]:
    run_dir.mkdir()
    (run_dir / "input").write_text("3\n1\n")
    (run_dir / "go").write_text("2\n")
    made = Program(run_dir, request.getfixturevalue("nodes").address if request.param == "ray" else "")
    yield made
    made.close()


def test_only_what_changed_runs_again_and_no_other_room_is_imported(program: Program) -> None:
    first = program.run()
    assert first["statuses"] == {"numbers": "done", "slow": "done", "both": "done"}
    assert first["state"] == "finished"
    assert (program.run_dir / "both" / "x").read_text() == "1\n2\n3\n"
    others = {name for name in first["modules"] if not name.startswith("paft_plugin.runner")}
    assert others == {"paft_plugin", "paft_plugin.errors", "paft_plugin.files", "paft_plugin.reading"}
    assert set(program.run()["statuses"].values()) == {"skipped"}
    (program.run_dir / "input").write_text("9\n8\n")
    assert program.run()["statuses"] == {"numbers": "done", "slow": "skipped", "both": "done"}
    assert (program.run_dir / "both" / "x").read_text() == "2\n8\n9\n"


@LINUX
def test_a_killed_stage_and_a_killed_run_go_on_where_they_were(program: Program) -> None:
    started, stage = program.start_until_slow_waits()
    os.kill(stage, signal.SIGKILL)
    _, error = started.communicate(timeout=PATIENCE)
    assert "Stage 'slow' (wait) was killed by SIGKILL" in error
    (program.run_dir / "go").write_text("2\n")
    assert program.run()["statuses"] == {"numbers": "skipped", "slow": "done", "both": "done"}

    started, stage = program.start_until_slow_waits()
    started.kill()
    started.communicate()
    wait_for(lambda: not alive(stage), "the stage's process to end with the run")
    (program.run_dir / "go").write_text("2\n")
    assert program.run()["statuses"] == {"numbers": "skipped", "slow": "done", "both": "done"}
    assert (program.run_dir / "both" / "x").read_text() == "1\n2\n3\n"
