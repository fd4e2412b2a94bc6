"""The run's lock, and the holds: what guards on other machines keep locked, and a new run waits for."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from paft_plugin.errors import PaftError
from paft_plugin.files import is_locked
from paft_plugin.runner.lock import LOCK, hold_path, locked, take_hold


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / ".stages").mkdir()
    return tmp_path


def test_a_hold_has_one_holder(run_dir: Path) -> None:
    hold = hold_path(run_dir, "sft")
    assert not is_locked(hold)
    descriptor = take_hold(hold, patience=0)
    assert is_locked(hold)
    with pytest.raises(BlockingIOError):
        take_hold(hold, patience=0.2)
    os.close(descriptor)
    assert not is_locked(hold)


def test_the_run_s_lock_waits_for_holds(run_dir: Path) -> None:
    descriptor = take_hold(hold_path(run_dir, "sft"), patience=0)
    with (
        pytest.raises(PaftError, match=r"what it started for the stage 'sft'.*delete .*sft\.hold"),
        locked(run_dir, patience=0.2),
    ):
        pytest.fail("locked beside a guard that lives")
    waiting = threading.Event()

    def let_go() -> None:
        waiting.wait(60)
        os.close(descriptor)

    thread = threading.Thread(target=let_go)
    thread.start()
    waiting.set()
    with locked(run_dir, patience=60):
        assert not is_locked(hold_path(run_dir, "sft"))
    thread.join()


def test_a_run_on_another_machine_is_named(run_dir: Path) -> None:
    """Its number says nothing here, where it may be nobody's."""
    with locked(run_dir, patience=1) as lock:
        os.ftruncate(lock, 0)
        os.pwrite(lock, b"4194305\nelsewhere\n", 0)  # one above the largest process id of Linux
        with (
            pytest.raises(PaftError, match=r"Another run \(process 4194305 on elsewhere\) is at work"),
            locked(run_dir, patience=60),
        ):
            pytest.fail("locked twice")
    assert (run_dir / LOCK).exists()
