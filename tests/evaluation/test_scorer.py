"""Scoring again and again: what lm-eval says of a model by itself, however often, whatever the model was before."""

from __future__ import annotations

from pathlib import Path

import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager, get_task_dict
from safetensors.torch import load_file

from paft_plugin.evaluation.arms import MEASURES
from paft_plugin.evaluation.candidates import Candidate
from paft_plugin.evaluation.score import load, score_model
from paft_plugin.evaluation.scorer import Scorer
from tests.search.conftest import make_items, make_task

from .conftest import build_model, write_rows


def open_tasks(folder: Path) -> dict:
    return get_task_dict(
        [measure.task for measure in MEASURES], TaskManager(include_path=str(folder), include_defaults=False)
    )


def test_it_says_what_the_demo_s_scoring_says(base: Path, tasks: Path) -> None:
    theirs = score_model(load(Candidate("x", base)), tasks)
    scorer = Scorer(load(Candidate("x", base)), open_tasks(tasks))
    ours = scorer.score()
    for measure in MEASURES:
        key = f"{measure.metric},{measure.filter}"
        assert ours[measure.task].values[key] == theirs[measure.name]
        assert ours[measure.task].stderr[key] == pytest.approx(theirs[f"{measure.name}_stderr"])
        assert scorer.items(measure.task) == theirs["n"][measure.name]


def test_it_says_what_lm_eval_says_of_each_model_that_it_becomes(base: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "items.jsonl", make_items(0))
    make_task(tmp_path / "tasks", "choice", tmp_path / "items.jsonl")

    manager = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
    models = [base, build_model(tmp_path / "other", seed=3), build_model(tmp_path / "third", seed=4)]
    theirs = [
        simple_evaluate(load(Candidate("x", model)), tasks=["choice"], task_manager=manager, apply_chat_template=True)
        for model in models
    ]
    assert len({result["results"]["choice"]["acc,none"] for result in theirs}) > 1  # or this would say nothing
    model = load(Candidate("x", base))
    scorer = Scorer(model, get_task_dict(["choice"], manager))
    for index in (0, 1, 2, 0):
        model.model.load_state_dict(load_file(models[index] / "model.safetensors"))
        ours = scorer.score()["choice"]
        assert ours.values["acc,none"] == theirs[index]["results"]["choice"]["acc,none"]
        assert ours.stderr["acc,none"] == pytest.approx(theirs[index]["results"]["choice"]["acc_stderr,none"])


def test_a_limit_takes_the_first_items(base: Path, tasks: Path) -> None:
    scorer = Scorer(load(Candidate("x", base)), open_tasks(tasks), limit=2)
    assert {scorer.items(measure.task) for measure in MEASURES} == {2}
    assert scorer.score()["paft_skill"].values


def test_the_fingerprint_is_that_of_what_is_asked(base: Path, tasks: Path) -> None:
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
    # lm-eval itself encodes where answers end, once for each batch.
    monkeypatch.setattr(
        type(model.tokenizer), "encode", lambda _, text, **__: [2] if text == "</s>" else pytest.fail(text)
    )
    assert scorer.score() == first
