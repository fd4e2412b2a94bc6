"""`scores.json`: what is written is read, and files that do not go together are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from paft_plugin.errors import PaftError
from paft_plugin.evaluation.results import ArmScore, Measure, ScoresFile, read_scores
from paft_plugin.files import write_json

MEASURES = (Measure("skill", "sums", "acc", "none", True), Measure("ppl", "text", "word_perplexity", "none", False))


def a_score(value: float) -> ArmScore:
    return ArmScore(scores={"skill": value}, stderr={"skill": 0.1}, n={"skill": 9, "ppl": 7}, seconds=1.0)


def write(file: Path, scores: dict[str, ArmScore], measures: tuple[Measure, ...] = MEASURES) -> None:
    ScoresFile(measures=measures, scores=scores).write(file)


def test_several_files_are_read_as_one(tmp_path: Path) -> None:
    write(tmp_path / "a.json", {"base": a_score(0.1), "sft": a_score(0.9)})
    write(tmp_path / "b.json", {"dpo": a_score(0.2)})
    measures, scores = read_scores([tmp_path / "a.json", tmp_path / "b.json"])
    assert measures == MEASURES
    assert scores == {"base": a_score(0.1), "sft": a_score(0.9), "dpo": a_score(0.2)}
    assert read_scores([]) == ((), {})


def test_files_that_do_not_go_together_are_one_line(tmp_path: Path) -> None:
    ours, other, older, broken = (tmp_path / f"{name}.json" for name in ("ours", "other", "older", "broken"))
    write(ours, {"base": a_score(0.1)})
    write(other, {"sft": a_score(0.1)}, (replace(MEASURES[0], filter="strict"),))
    write_json(older, {"schema": 1, "scores": {}})
    broken.write_text("{")
    for files, message in (
        ([ours, other], "other.json: scored on other measures"),
        ([older], r"older.json: schema 1, and this version reads 2. Score its arms again"),
        ([broken], "broken.json: no valid JSON"),
        ([tmp_path / "none.json"], "none.json: missing"),
    ):
        with pytest.raises(PaftError, match=message):
            read_scores(files)
