"""The benchmarks of whole models run and write what they say; how fast anything is, is none of a test's business."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from paft_plugin import machine
from paft_plugin.benchmarks import fusion, inspection


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """In processes of their own, it takes seconds each time for torch to be imported."""
    for module in (fusion, inspection):
        monkeypatch.setattr(module, "apart", lambda work, *arguments: work(*arguments))
    # It would last to the end of this one process, and hide the memory that other tests measure.
    monkeypatch.setattr(machine, "reuse_freed_memory", lambda: None)


def rows(module: Any, tmp_path: Path) -> dict[str, dict[str, Any]]:
    """What `--quick` wrote, by the rows' names."""
    output = tmp_path / "benchmark.json"
    arguments = ["--quick", "--repeats", "1", "--output", str(output), "--work", str(tmp_path)]
    ended = CliRunner().invoke(module.command, arguments, catch_exceptions=False)
    assert ended.exit_code == 0
    written = json.loads(output.read_text())
    assert written["quick"] is True
    for row in written["rows"]:
        assert f"{row['name']}: {row['note']}" in ended.output
        assert all(figure["value"] >= 0 for figure in row["figures"])
        assert all(len(samples) == 1 for samples in row["timings"].values())
    assert list(tmp_path.iterdir()) == [output], "the models are removed"
    return {row["name"]: row for row in written["rows"]}


@pytest.mark.slow
def test_an_inspection_beside_reading(tmp_path: Path) -> None:
    cases = ("one model", "two models and their pair", "two adapters and their pair")
    assert rows(inspection, tmp_path).keys() == {f"{case}, {cache}" for case in cases for cache in ("cold", "warm")}


@pytest.mark.slow
def test_a_merge_beside_mergekit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion, "METHODS", ("ties",))
    figures = {figure["what"]: figure for figure in rows(fusion, tmp_path)["ties"]["figures"]}
    assert figures["the same bits"]["met"]
