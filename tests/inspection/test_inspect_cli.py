"""`axolotl paft inspect` says all that is wrong at once, writes where it is told, and needs nothing but to read its inputs."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from paft_plugin.cli import paft
from paft_plugin.inspection.inspected import read_inspection
from tests.deltas.builders import edit_config, make_adapter, make_base, make_model


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(paft, ["inspect", *map(str, arguments), "--no-plots"], terminal_width=80)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path / "base")


def test_a_table_and_a_file(base: Path, tmp_path: Path) -> None:
    sft, dpo = make_adapter(base, tmp_path / "sft"), make_model(base, tmp_path / "dpo")
    chosen = ("--threshold", "0.01", "--threshold", "0", "--density", "0.3")
    result = run("--base", base, f"sft={sft}", f"dpo={dpo}", "--output-dir", tmp_path / "out", *chosen)
    assert result.exit_code == 0, result.output
    assert max(len(line) for line in result.output.splitlines() if not line.startswith("Wrote")) <= 80
    for text in ("sft", "dpo", "|δ| ≤ 0.01", "Hoyer", "Cosine", "sft and dpo", "Elected"):
        assert text in result.output
    inspection = read_inspection(tmp_path / "out")
    assert inspection.thresholds == (0.0, 0.01)
    assert inspection.densities == (0.3, 1.0)
    assert [delta.name for delta in inspection.deltas] == ["sft", "dpo"]
    assert [(pair.first, pair.second) for pair in inspection.pairs] == [("sft", "dpo")]


def test_no_pairs(base: Path, tmp_path: Path) -> None:
    sft, dpo = make_adapter(base, tmp_path / "sft"), make_model(base, tmp_path / "dpo")
    result = run("--base", base, f"sft={sft}", f"dpo={dpo}", "--output-dir", tmp_path / "out", "--no-pairs")
    assert result.exit_code == 0, result.output
    assert not read_inspection(tmp_path / "out").pairs


def test_all_mistakes_at_once(base: Path, tmp_path: Path) -> None:
    sft = make_adapter(base, tmp_path / "sft")
    stranger = make_adapter(make_base(tmp_path / "small", hidden_size=16), tmp_path / "stranger")
    wrong = [f"sft={sft}", f"sft={sft}", str(sft), f"gone={tmp_path / 'gone'}", f"stranger={stranger}"]
    chosen = ("--threshold", "-1", "--density", "1.5", "--density", "0", "--fused", "sfd")
    result = run("--base", base, *wrong, "--output-dir", tmp_path / "out", *chosen)
    assert result.exit_code == 2
    for text in (
        "the name sft is given twice",
        "not of the form NAME=DELTA",
        f"{tmp_path / 'gone'}: no such folder",
        f"{stranger}: ",
        "threshold -1.0: not a number ≥ 0",
        "density 1.5: not a share in (0, 1]",
        "density 0.0: not a share in (0, 1]",
        "--fused sfd: no such delta. Did you mean sft?",
    ):
        assert text in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_a_missing_base_is_named_once_beside_the_faults_of_the_deltas(base: Path, tmp_path: Path) -> None:
    result = run(
        "--base", tmp_path / "nowhere", f"a={base}", f"b={tmp_path / 'gone'}", "--output-dir", tmp_path / "out"
    )
    assert result.exit_code == 2
    assert result.output.count("nowhere: no such folder") == 1
    assert "gone: no such folder" in result.output


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_deltas_that_diverged_are_named_together(base: Path, tmp_path: Path, bad: float) -> None:
    folders = [make_model(base, tmp_path / name) for name in ("one", "two")]
    for folder in folders:
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = bad
        save_file(tensors, folder / "model.safetensors")
    result = run("--base", base, f"one={folders[0]}", f"two={folders[1]}", "--output-dir", tmp_path / "out")
    assert result.exit_code == 2
    assert result.output.count("NaN or infinity in its delta of model.layers.1.mlp.up_proj.weight") == 2
    assert not (tmp_path / "out" / "inspection.json").exists()


def test_a_place_that_cannot_be_written_is_known_at_once(base: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run("--base", base, f"a={base}", "--output-dir", tmp_path / "file" / "out")
    assert result.exit_code == 2
    assert "cannot be written" in result.output


def test_from_another_folder_with_odd_names_and_read_only_inputs(tmp_path: Path) -> None:
    room = tmp_path / "a room+1 (δ)"
    base = make_base(room / "base model", dtype=torch.bfloat16)
    sft = make_adapter(base, room / "sft=1+2")
    edit_config(sft, base_model_name_or_path="base model")
    inputs = [*room.rglob("*"), room]
    before = {path: path.stat().st_mtime_ns for path in inputs}
    for path in inputs:
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    command = [sys.executable, "-m", "paft_plugin.cli", "inspect", "--base", f"../{room.name}/base model"]
    command += [f"sft=../{room.name}/sft=1+2", "--output-dir", "out put+", "--no-plots"]
    ran = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, env=os.environ)
    for path in inputs:
        path.chmod(path.stat().st_mode | stat.S_IWUSR)
    assert ran.returncode == 0, ran.stderr
    assert {path: path.stat().st_mtime_ns for path in inputs} == before
    inspection = read_inspection(elsewhere / "out put+")
    assert inspection.delta("sft").folder == str(elsewhere / ".." / room.name / "sft=1+2")
    assert set(inspection.delta("sft").figures.total.unseen) == {"bfloat16"}
