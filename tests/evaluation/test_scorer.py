"""Scoring again and again: what lm-eval says of a model by itself, however often, whatever the model was before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lm_eval.tasks import TaskManager, get_task_dict

from paft_plugin.evaluation.arms import MEASURES
from paft_plugin.evaluation.candidates import Candidate
from paft_plugin.evaluation.score import load, score_model
from paft_plugin.evaluation.scorer import Scorer

from .conftest import build_model


def open_tasks(folder: Path) -> dict:
    return get_task_dict(
        [measure.task for measure in MEASURES], TaskManager(include_path=str(folder), include_defaults=False)
    )


def test_it_says_what_simple_evaluate_says_of_each_model_it_becomes(base: Path, tasks: Path, tmp_path: Path) -> None:
    other = build_model(tmp_path / "other", seed=3)
    theirs = [score_model(load(Candidate("x", model)), tasks) for model in (base, other)]
    model = load(Candidate("x", base))
    scorer = Scorer(model, open_tasks(tasks))
    weights = [load(Candidate("x", folder)).model.state_dict() for folder in (base, other)]
    for index in (0, 1, 0):
        model.model.load_state_dict(weights[index])
        ours = scorer.score()
        for measure in MEASURES:
            key = f"{measure.metric},{measure.filter}"
            assert ours[measure.task].values[key] == theirs[index][measure.name]
            assert ours[measure.task].stderr[key] == pytest.approx(theirs[index][f"{measure.name}_stderr"])
            assert scorer.items(measure.task) == theirs[index]["n"][measure.name]
    assert theirs[0] != theirs[1]


def test_a_limit_takes_the_first_items(base: Path, tasks: Path) -> None:
    scorer = Scorer(load(Candidate("x", base)), open_tasks(tasks), limit=2)
    assert {scorer.items(measure.task) for measure in MEASURES} == {2}
    assert scorer.score()["paft_skill"].values


def test_the_fingerprint_is_that_of_what_is_asked(base: Path, tasks: Path, tmp_path: Path) -> None:
    model = load(Candidate("x", base))
    whole, again, part = (Scorer(model, open_tasks(tasks), limit) for limit in (None, None, 2))
    names = [measure.task for measure in MEASURES]
    assert [whole.fingerprint(name) for name in names] == [again.fingerprint(name) for name in names]
    assert len({whole.fingerprint(name) for name in names}) == len(names)
    assert all(whole.fingerprint(name) != part.fingerprint(name) for name in names)


def test_nothing_is_tokenised_twice(base: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(Candidate("x", base))
    scorer = Scorer(model, open_tasks(tasks))
    first = scorer.score()
    monkeypatch.setattr(type(model.tokenizer), "__call__", lambda *_, **__: pytest.fail("tokenised again"))
    monkeypatch.setattr(type(model.tokenizer), "encode", lambda *_, **__: pytest.fail("tokenised again"))
    with torch.no_grad():
        assert scorer.score() == first
