"""Every row of the benchmark for GPUs runs on a CPU, and without the libraries that a GPU machine may lack."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from paft_plugin.benchmarks import gpu
from paft_plugin.benchmarks.harness import BenchmarkRow, Figure, apart
from paft_plugin.runner.devices import Device
from tests.gpu.absent import without_axolotl

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """In processes of their own, it takes seconds each time for torch to be imported."""
    monkeypatch.setattr(gpu, "apart", lambda work, *arguments, **_: work(*arguments))


def run(tmp_path: Path, *arguments: str) -> tuple[int, str, dict[str, dict[str, Any]]]:
    """Exit code, output, and what was written, by the rows' names."""
    output = tmp_path / "gpu.json"
    ended = CliRunner().invoke(gpu.command, ["--device", "cpu", "--output", str(output), *arguments])
    assert ended.exception is None or isinstance(ended.exception, SystemExit)
    return ended.exit_code, ended.output, {row["name"]: row for row in json.loads(output.read_text())["rows"]}


def only(*names: str) -> list[str]:
    return [argument for name in names for argument in ("--only", name)]


@pytest.mark.slow
def test_all_rows_run_where_axolotl_is_not_installed(tmp_path: Path) -> None:
    """In a fresh process, and in those that it starts; with the kernels in Triton's interpreter."""
    output = tmp_path / "gpu.json"
    done = subprocess.run(
        [sys.executable, "-m", "paft_plugin.benchmarks", "gpu", "--device", "cpu", "--minutes", "20", "--json", output],
        cwd=REPOSITORY,
        env=os.environ | without_axolotl(tmp_path),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(output.read_text())["rows"]
    assert [row["name"] for row in rows] == list(gpu.ROWS)
    for row in rows:
        assert row["figures"], row["note"]
        assert all(figure["met"] is not False for figure in row["figures"]), row


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
def test_steps_memory_merges_and_scores(tmp_path: Path) -> None:
    names = ("lora step", "full step, θ_pre: host", "merge", "scoring in bf16")
    code, shown, rows = run(tmp_path, *only(*names))
    assert code == 0, shown
    assert tuple(rows) == names
    figures = {name: {figure["what"]: figure for figure in row["figures"]} for name, row in rows.items()}
    assert all(figure["met"] is not False for row in figures.values() for figure in row.values())
    for step in names[:2]:
        assert figures[step].keys() >= {"ratio of step medians", "penalty", "peak memory", "estimate / peak"}
    assert figures["merge"]["task_arithmetic: other bits / 10⁶"]["value"] == 0
    assert figures["scoring in bf16"]["largest difference"]["value"] > 0


@pytest.mark.usefixtures("one_process")
def test_a_row_that_fails_says_why_and_the_others_run_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: gpu.GpuSize) -> BenchmarkRow:
        raise RuntimeError("CUDA error: an illegal memory access")

    def good(_: gpu.GpuSize) -> BenchmarkRow:
        return BenchmarkRow("merge", [Figure("time", 1.0, "s")])

    monkeypatch.setattr(gpu, "ROWS", gpu.ROWS | {"lora step": broken, "merge": good})
    code, shown, rows = run(tmp_path, *only("lora step", "merge"))
    assert code == 1
    assert rows["lora step"]["failed"]
    assert "failed: RuntimeError: CUDA error: an illegal memory access" in shown
    assert rows["merge"]["figures"][0]["value"] == 1.0


def test_a_row_whose_process_dies_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "apart", lambda *_, **__: apart(os._exit, 1))
    (row,) = gpu.measure(("merge",), gpu.QUICK, minutes=1)
    assert row.failed
    assert row.note.startswith("failed: its process died")


@pytest.mark.slow
def test_a_row_that_hangs_is_ended() -> None:
    code = (
        "import time; from paft_plugin.benchmarks import gpu; "
        "gpu.ROWS['merge'] = lambda _: time.sleep(600); gpu.one_row('merge', gpu.QUICK, 0.5)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode != 0
    assert "Timeout" in done.stderr


def test_rows_for_which_no_time_is_left_are_named() -> None:
    rows = list(gpu.measure(("merge", "lora step"), gpu.QUICK, minutes=0))
    assert [(row.name, row.failed) for row in rows] == [("merge", True), ("lora step", True)]
    assert all("not started" in row.note for row in rows)


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "find_spec", lambda _: None)
    for row, package in ((gpu.merge, "mergekit"), (gpu.qlora_step, "bitsandbytes")):
        assert row(gpu.QUICK).note == f"not measured: {package} is not installed"


def test_a_peak_is_what_the_device_holds_beyond_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's own part, which no allocator counts, is what is in use now and not reserved by torch."""
    used = iter((1000, 4500))
    monkeypatch.setattr(gpu, "find_devices", lambda: [Device("0", "GPU 0", memory=9000, used=next(used))])
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 3000)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 6000)
    assert gpu.PeakMemory("cuda").bytes() == 500 + 6000


def test_bars_are_held_at_full_size_alone() -> None:
    assert (gpu.FULL.bar(1.01), gpu.QUICK.bar(1.01)) == (1.01, None)
    assert not replace(gpu.QUICK, device="cuda").held


def test_units_in_the_last_place() -> None:
    one = torch.tensor([1.0, 1.0, -1.0, 0.0, -1e-40], dtype=torch.bfloat16)
    other = torch.tensor([1.0, 1.0078125, -1.0078125, -0.0, 1e-40], dtype=torch.bfloat16)
    assert gpu.ulps(one, other).tolist()[:4] == [0, 1, 1, 0]
    assert gpu.ulps(one, other).tolist()[4] > 1
