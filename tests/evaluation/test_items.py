"""Scored items with something missing are refused before anything is scored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paft_plugin.demo.data import write_data, write_tasks
from paft_plugin.evaluation.items import task_problems
from paft_plugin.evaluation.score import main


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's items and tasks, in a folder with characters that patterns take for their own."""
    folder = tmp_path / "run [1] + more"
    write_data(folder / "data", 0, sft_rows=1, preference_rows=1, items=5)
    write_tasks(folder / "tasks", folder / "data" / "test")
    return folder


def without_field(file: Path, field: str, line: int) -> None:
    rows = [json.loads(text) for text in file.read_text().splitlines()]
    del rows[line - 1][field]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_whole_items_have_no_problem(run: Path) -> None:
    assert task_problems(run / "tasks") == []


def test_every_damaged_file_is_named_with_its_line(run: Path) -> None:
    items = run / "data" / "test"
    without_field(items / "skill.jsonl", "answer", 3)
    without_field(items / "preference.jsonl", "chosen", 1)
    (items / "style.jsonl").unlink()
    with (items / "retained.jsonl").open("a") as file:
        file.write('{"task": "copy", "prom\n')
    problems = task_problems(run / "tasks")
    assert len(problems) == 4
    assert any(f"{items / 'skill.jsonl'}, line 3: no field 'answer'" in problem for problem in problems)
    assert any(f"{items / 'preference.jsonl'}, line 1: no field 'chosen'" in problem for problem in problems)
    assert any(f"{items / 'retained.jsonl'}, line 6: not JSON" in problem for problem in problems)
    assert any("no scored items in" in problem and "style.jsonl" in problem for problem in problems)


def test_the_command_says_so_and_exits_with_2(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without_field(run / "data" / "test" / "skill.jsonl", "prompt", 1)
    output = run / "scores.json"
    assert main(["--tasks", str(run / "tasks"), "--output", str(output), f"base={run}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no field 'prompt'" in line
    assert not output.exists()
