"""`scores.json`: what is written is read, and files that do not go together are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paft_plugin.errors import PaftError
from paft_plugin.evaluation.results import ArmResult, Measure, read_scores, scores_content
from paft_plugin.files import write_json

MEASURES = [Measure("skill", "sums", "acc", "none", True), Measure("ppl", "text", "word_perplexity", "none", False)]


def a_score(value: float) -> dict[str, Any]:
    return {"scores": {"skill": value}, "stderr": {"skill": 0.1}, "n": {"skill": 9, "ppl": 7}, "seconds": 1.0}


def test_several_files_are_read_as_one(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", scores_content(MEASURES, {"base": a_score(0.1), "sft": a_score(0.9)}))
    write_json(tmp_path / "b.json", scores_content(MEASURES, {"dpo": a_score(0.2)}))
    measures, scores = read_scores([tmp_path / "a.json", tmp_path / "b.json"])
    assert measures == MEASURES
    assert list(scores) == ["base", "sft", "dpo"]
    result = ArmResult.from_score("dpo", scores["dpo"], sparsity={"1e-05": 0.9}, model="branches/dpo")
    assert result == ArmResult(
        "dpo", {"skill": 0.2}, {"skill": 0.1}, {"skill": 9, "ppl": 7}, {"1e-05": 0.9}, "branches/dpo"
    )
    assert read_scores([]) == ([], {})


def test_files_that_do_not_go_together_are_one_line(tmp_path: Path) -> None:
    ours, other, older, broken = (tmp_path / f"{name}.json" for name in ("ours", "other", "older", "broken"))
    write_json(ours, scores_content(MEASURES, {"base": a_score(0.1)}))
    write_json(other, scores_content([replace(MEASURES[0], filter="strict")], {"sft": a_score(0.1)}))
    write_json(older, {"schema": 1, "scores": {}})
    broken.write_text("{")
    for files, message in (
        ([ours, other], "other.json: scored on other measures"),
        ([older], "older.json: written by another version"),
        ([broken], "broken.json: cannot be read"),
        ([tmp_path / "none.json"], "none.json: cannot be read"),
    ):
        with pytest.raises(PaftError, match=message):
            read_scores(files)
