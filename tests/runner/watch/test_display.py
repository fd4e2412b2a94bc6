"""What is shown while stages run: on a terminal and off it."""

from __future__ import annotations

import dataclasses
import io
import itertools
import threading
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console

from paft_plugin.runner import logs
from paft_plugin.runner.local import LocalExecutor
from paft_plugin.runner.scheduler import run_stages
from paft_plugin.runner.watch.display import Display, duration
from tests.runner.tools import READER, python, wait_for


def test_plain_lines_off_a_terminal(run_dir: Path) -> None:
    stages = [python("a", ""), python("b", "", needs=("a",))]
    stages[0] = dataclasses.replace(stages[0], title="Train [bold]λ[/bold] (sft)")
    screen = io.StringIO()
    run_stages(stages, run_dir, LocalExecutor(), [Display(run_dir, Console(file=screen, width=60))])
    lines = screen.getvalue().splitlines()
    assert "\x1b" not in screen.getvalue()
    assert lines[1] == f"start    Train [bold]λ[/bold] (sft) (log: {run_dir / 'logs' / 'a.log'})"
    assert [line.split()[0] for line in lines[1:]] == ["start", "done", "start", "done"]


def test_a_terminal_shows_running_stages_with_their_log(run_dir: Path) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    looked = threading.Event()
    stage = python("a", "until(lambda: (out / 'go').exists())")

    def look() -> None:
        wait_for(lambda: "logs/a.log" in screen.getvalue(), "the log's name on the screen")
        looked.set()
        (run_dir / "out" / "a" / "go").touch()

    thread = threading.Thread(target=look)
    thread.start()
    run_stages([stage], run_dir, LocalExecutor(), [Display(run_dir, console)])
    thread.join()
    assert looked.is_set()
    assert "Stage a" in screen.getvalue()
    assert "0 of 1 stages through" in screen.getvalue()


def test_a_terminal_shows_how_far_stages_are_within_80_columns(run_dir: Path) -> None:
    """Stages with long titles; what their logs say is on the screen, and no line is wider than it."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80, color_system=None)
    with Display(run_dir, console, READER) as display:
        for name, log in (
            ("sft-l1", "3/10, 14 s left\n"),
            ("dpo", "1/2, 187 s left\n3/4, 34 s left\n"),
            ("score", "$ score\n"),
        ):
            path = run_dir / "logs" / f"{name}.log"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(log)
            display.started(dataclasses.replace(python(name, ""), title=f"{name} " + 9 * "long title "), path, "GPU 0")
        display.refresh()
    frame = logs.plain(screen.getvalue()).split("\n")
    assert "  item 3 of 10 · 14.0 s left" in frame
    assert "  item 3 of 4 · 34.0 s left" in frame
    rows = [line for line in frame if "GPU 0" in line]
    assert len(rows) == 3
    assert all(".log" in row or "logs/" in row for row in rows)
    assert max(map(cell_len, frame)) <= 80


def test_off_a_terminal_a_stage_tells_now_and_then(run_dir: Path) -> None:
    shown = io.StringIO()
    log = run_dir / "logs" / "sft.log"
    log.parent.mkdir(parents=True)
    log.write_text("3/10, 14 s left\n")
    seconds = itertools.count()
    with Display(run_dir, Console(file=shown), READER, clock=lambda: float(next(seconds))) as display:
        display.started(python("sft", ""), log, "GPU 0")
        for _ in range(125):
            display.refresh()
    told = [line for line in shown.getvalue().splitlines() if line.startswith("progress")]
    assert told == 2 * ["progress Stage sft: item 3 of 10 · 14.0 s left"]


def test_plain_text_and_durations() -> None:
    assert logs.plain("\x1b[1;31mred\x1b[0m \x1b]0;title\x07x\r\n 1%\r 2%\n") == "red x\n 2%\n"
    assert [duration(s) for s in (4.23, 187, 3753)] == ["4.2 s", "3:07", "1:02:33"]
    assert [logs.size(n) for n in (999, 1_500_000, 2_500_000_000)] == ["999 B", "2 MB", "2.5 GB"]
