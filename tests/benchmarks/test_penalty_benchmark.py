"""The benchmark runs and writes what it says; how fast anything is, is none of a test's business."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from paft_plugin.benchmarks import penalty
from paft_plugin.benchmarks.harness import MIB
from paft_plugin.benchmarks.penalty import Scale, peak_here, random_llama, time_steps

TINY = Scale(
    hidden=16,
    intermediate=24,
    layers=1,
    vocabulary=50,
    sequences=8,
    sequence_length=8,
    pairs=2,
    repeats=2,
    layer_set=((32, 48), (48, 32)),
)


def test_rows_are_printed_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(penalty, "QUICK", TINY)
    # In a process of its own, it takes seconds for torch to be imported.
    monkeypatch.setattr(penalty, "apart", lambda work, *arguments, **_: work(*arguments))
    monkeypatch.setattr(penalty, "peak_memory", lambda prepare, *arguments: bool(prepare(*arguments)()) + 1)
    output = tmp_path / "benchmark.json"
    result = CliRunner().invoke(penalty.command, ["--quick", "--output", str(output)], catch_exceptions=False)
    assert result.exit_code == 0
    written = json.loads(output.read_text())
    assert written["quick"] is True
    assert written["machine"].keys() == {"platform", "cpus", "threads", "device"}
    rows = {row["name"]: row for row in written["rows"]}
    assert list(rows) == list(penalty.ROWS)
    assert all(name in result.output for name in rows)
    steps = {"plain step", "penalised step", "penalty in a step"}
    split = {f"penalty in a step, accumulation {penalty.ACCUMULATION}"}
    assert rows["lora step"]["timings"].keys() == steps | split
    assert rows["full step"]["timings"].keys() == steps
    assert rows["inspection"]["timings"].keys() == {"plain step", "inspection"}
    contenders = {"naive", "ours", "ours_without_measure"}
    kept = {f"memory kept: {name}" for name in contenders}
    assert rows["llama-3-8b layer set"]["timings"].keys() == contenders | kept
    for name, row in rows.items():
        assert row["figures"], name
        assert all(len(samples) == 2 for samples in row["timings"].values())
        assert all(figure.keys() >= {"what", "value", "unit", "low", "high", "met"} for figure in row["figures"])


def test_penalty_runs_once_a_step_whatever_the_accumulation() -> None:
    for accumulation in (1, 8):
        times = time_steps(random_llama(TINY, lora=True), TINY, gradient_accumulation_steps=accumulation)
        assert times.passes == [1, 1]
        assert all(seconds > 0 for seconds in times.penalty)


def test_peak_memory_is_that_of_the_work_alone() -> None:
    def prepare(size: int) -> Any:
        return lambda: bytearray(b"x") * size

    # Large enough to be mapped anew, whatever the tests before it left free; Linux counts pages a little late.
    assert peak_here(prepare, 256 * MIB) == pytest.approx(256 * MIB, rel=0.1)
