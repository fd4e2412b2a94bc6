"""`axolotl paft search` killed and interrupted as a user's machine does it, and gone on with by the same command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from paft_plugin.pipeline.arms import search_request
from paft_plugin.search.run import run_search
from tests.search.outputs import trials

pytestmark = pytest.mark.slow
LIMIT = 300  # seconds, only so that a hang ends
TRIALS = 25
Write = Callable[..., Path]


def start(file: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-u", "-m", "axolotl.cli.main", "paft", "search", str(file)]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_trial(process: subprocess.Popen[str], number: int) -> None:
    assert process.stdout is not None
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        line = process.stdout.readline()
        assert line or process.poll() is None
        if line.split()[:1] == [str(number)]:
            return
    pytest.fail("no such trial in time")


def test_killed_then_interrupted_then_finished_it_finds_what_it_would_have_found(
    paft_yml: Write, tmp_path: Path
) -> None:
    file = paft_yml(tmp_path / "disturbed", trials=TRIALS)
    killed = start(file)
    wait_for_trial(killed, 7)
    killed.kill()
    killed.communicate(timeout=LIMIT)
    assert killed.returncode == -signal.SIGKILL

    interrupted = start(file)
    wait_for_trial(interrupted, 9)
    os.kill(interrupted.pid, signal.SIGINT)
    output, errors = interrupted.communicate(timeout=LIMIT)
    assert interrupted.returncode == 130
    assert "Stopping after the running trial" in output
    assert "run the same command again to go on" in errors
    assert "Traceback" not in errors
    assert 9 <= len(trials(tmp_path / "disturbed")) < TRIALS
    assert (tmp_path / "disturbed" / "search" / "front.png").is_file()

    finished = start(file)
    output, errors = finished.communicate(timeout=LIMIT)
    assert finished.returncode == 0, errors[-2000:]
    assert "Going on after" in output

    run_search(search_request(paft_yml(tmp_path / "undisturbed", trials=TRIALS)), Console(quiet=True))
    assert trials(tmp_path / "disturbed") == trials(tmp_path / "undisturbed")
