"""`axolotl paft diagnose`: exit codes, text and JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from paft_plugin.cli import paft
from tests.inspection.planted_runs import PlantedRun, dense, sparse

HEALTHY = PlantedRun({"sft": dense(1), "dpo": dense(2)})
DOMINATED = PlantedRun({"sft": dense(1), "dpo": 10 * dense(2)})


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(paft, ["diagnose", *map(str, arguments)])


def test_exit_codes_tell_healthy_from_ill_from_mistaken(tmp_path: Path) -> None:
    healthy, ill = HEALTHY.write(tmp_path / "healthy"), DOMINATED.write(tmp_path / "ill")
    (tmp_path / "empty").mkdir()
    assert run(healthy).exit_code == 0
    assert run(ill).exit_code == 3
    for mistake in (run(tmp_path / "empty"), run(tmp_path / "nowhere"), run(ill, "--sft", "nobody"), run()):
        assert mistake.exit_code == 2
        assert "Traceback" not in mistake.output


@pytest.mark.parametrize("content", ["{", "[]", '{"schema": 99}', '{"schema": 1, "deltas": 3}'])
def test_an_inspection_that_cannot_be_read_is_one_clear_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "inspection.json").write_text(content)
    refused = run(tmp_path)
    assert refused.exit_code == 2
    assert "inspection.json" in refused.output
    assert len(refused.output.strip().splitlines()) == 1


def test_the_text_says_what_by_which_numbers_and_what_to_do(tmp_path: Path) -> None:
    text = run(DOMINATED.write(tmp_path)).output
    for part in (
        "FOUND: dominance · sft × dpo",
        "dpo decides the merge",
        "≤ 0.333",
        "Confidence:",
        "--weight-preference 0.1",
    ):
        assert part in text
    assert "not found: excessive L1 · sft" in text
    assert "1 found, 3 not found, 0 that cannot be told" in text


def test_of_eight_branches_what_is_well_stands_together_and_each_finding_in_full(tmp_path: Path) -> None:
    names = [f"b{place}" for place in range(8)]
    deltas = {name: dense(place) * (10 if place == 7 else 1) for place, name in enumerate(names)}
    result = run(PlantedRun(deltas).write(tmp_path), *[text for name in names for text in ("--sft", name)])
    assert result.exit_code == 3
    assert result.output.count("FOUND: dominance") == 7
    assert result.output.count("not found: dominance\n") == 1
    after = result.output.partition("not found: continued branch\n")[2]
    assert "b0 × b1, b0 × b2" in " ".join(after.split())
    assert len(after.splitlines()) < 40


def test_the_file_for_machines_holds_every_check(tmp_path: Path) -> None:
    mismatched = PlantedRun({"sft": dense(1), "dpo": sparse(2)}).write(tmp_path)
    file = tmp_path / "diagnosis.json"
    assert run(mismatched, "--json", file).exit_code == 3
    content = json.loads(file.read_text())
    assert content["schema"] == 2
    assert content["healthy"] is False
    assert [(check["signature"], check["state"]) for check in content["checks"]] == [
        ("excessive L1", "clear"),
        ("continued branch", "clear"),
        ("dominance", "clear"),
        ("dense-sparse mismatch", "found"),
    ]
    found = content["checks"][-1]
    assert found["culprit"] == "sft"
    assert {"what", "value", "threshold", "above", "source", "speaks_for"} <= set(found["evidence"][0])
    assert {"setting", "where", "old", "new", "reason"} == set(found["remedies"][0])


def test_the_json_file_is_written_for_a_healthy_run_too(tmp_path: Path) -> None:
    file = tmp_path / "diagnosis.json"
    assert run(HEALTHY.write(tmp_path), "--json", file).exit_code == 0
    assert json.loads(file.read_text())["healthy"] is True
