"""Scoring again and again: what lm-eval says of a model by itself, however often, whatever the model was before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Lfm2Config, LlamaConfig, MambaConfig, MistralConfig

from paft_plugin.evaluation.candidates import Candidate, as_lm_eval, load_model
from paft_plugin.evaluation.config import MeasureConfig
from paft_plugin.evaluation.results import Measure
from paft_plugin.evaluation.scorer import Scorer, share_contexts, tokenise_once
from paft_plugin.evaluation.tasks import OpenTask, open_measures
from tests.evaluation.items import demo_config, make_items, make_task, write_rows
from tests.evaluation.models import build_model, load

NAMES = ["paft_skill", "paft_preference", "paft_style", "paft_words"]


def plain(model: Path, **settings: Any) -> HFLM:
    return load(Candidate("x", model), batch_size=64, **settings)


def open_tasks(folder: Path) -> tuple[list[Measure], dict[str, OpenTask]]:
    return open_measures(demo_config(folder).measures, folder)


@pytest.mark.parametrize("chat", [True, False])
def test_it_says_what_lm_eval_says_of_the_demo_s_tasks(base: Path, tasks: Path, chat: bool) -> None:
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    theirs = simple_evaluate(
        plain(base), tasks=NAMES, task_manager=manager, apply_chat_template=chat, fewshot_as_multiturn=chat
    )
    measures, opened = open_tasks(tasks)
    scorer = Scorer(plain(base), opened, apply_chat_template=chat)
    ours = scorer.score()
    for measure in measures:
        reported = theirs["results"][measure.task]
        assert ours[measure.task].values[measure.key] == reported[measure.key]
        assert ours[measure.task].stderr[measure.key] == reported[measure.key.replace(",", "_stderr,")]
        assert scorer.items(measure.task) == theirs["n-samples"][measure.task]["effective"]


def test_what_is_no_mean_has_a_bootstrapped_error_the_same_each_time(base: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "items.jsonl", make_items(0))
    metrics = [{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}]
    make_task(
        tmp_path / "tasks",
        "likely",
        tmp_path / "items.jsonl",
        output_type="loglikelihood",
        doc_to_choice=None,
        doc_to_target="{{answers[right]}}",
        metric_list=metrics,
    )
    measures, opened = open_measures({"likely": MeasureConfig()}, tmp_path / "tasks")
    assert (measures[0].metric, measures[0].higher_is_better) == ("perplexity", False)
    first, second = (Scorer(plain(base), opened).score()["likely"] for _ in range(2))
    assert first == second
    assert first.stderr["perplexity,none"] > 0


def test_a_language_that_is_guessed_by_chance_is_guessed_alike_each_time(base: Path, tmp_path: Path) -> None:
    """As IFEval's verifiers guess it, by langdetect, which has a generator of its own."""
    write_rows(tmp_path / "items.jsonl", make_items(0))
    make_task(
        tmp_path / "tasks",
        "guess",
        tmp_path / "items.jsonl",
        output_type="loglikelihood",
        doc_to_choice=None,
        doc_to_target="{{answers[right]}}",
    )
    (tmp_path / "tasks" / "code.py").write_text(
        "import langdetect\n\ndef guess(doc, results):\n    return {'acc': langdetect.detect_langs('tea')[0].prob}\n"
    )
    with (tmp_path / "tasks" / "guess.yaml").open("a") as file:
        file.write("process_results: !function code.guess\n")
    _, opened = open_measures({"guess": MeasureConfig()}, tmp_path / "tasks", trusted=True)
    scorer = Scorer(plain(base), opened)
    assert scorer.score() == scorer.score()


def test_it_says_what_lm_eval_says_of_each_model_that_it_becomes(base: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "items.jsonl", make_items(0))
    make_task(tmp_path / "tasks", "choice", tmp_path / "items.jsonl")

    manager = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
    models = [base, build_model(tmp_path / "other", seed=3), build_model(tmp_path / "third", seed=4)]
    theirs = [
        simple_evaluate(plain(model), tasks=["choice"], task_manager=manager, apply_chat_template=True)
        for model in models
    ]
    assert len({result["results"]["choice"]["acc,none"] for result in theirs}) > 1  # or this would say nothing
    model = plain(base)
    tokenise_once(model)
    scorer = Scorer(model, open_measures({"choice": MeasureConfig()}, tmp_path / "tasks")[1])
    for index in (0, 1, 2, 0):
        model.model.load_state_dict(load_file(models[index] / "model.safetensors"))
        ours = scorer.score()["choice"]
        assert ours.values["acc,none"] == theirs[index]["results"]["choice"]["acc,none"]
        assert ours.stderr["acc,none"] == theirs[index]["results"]["choice"]["acc_stderr,none"]


def test_tasks_that_another_model_was_scored_on_are_asked_anew(base: Path, tasks: Path, tmp_path: Path) -> None:
    """Its tokenizer's chat template is another one."""
    other = build_model(tmp_path / "other")
    template = (other / "chat_template.jinja").read_text()
    (other / "chat_template.jinja").write_text(template.replace("<|assistant|>", "<|assistant|>sure: "))
    _, opened = open_tasks(tasks)
    first, second = Scorer(plain(base), opened), opened["paft_skill"].parts["paft_skill"].instances
    assert first.score()
    Scorer(plain(other), opened)
    third = opened["paft_skill"].parts["paft_skill"].instances
    assert [request.args[0].replace("sure: ", "") for request in third] == [request.args[0] for request in second]
    assert all("sure: " in request.args[0] for request in third)


SMALL: dict[str, Any] = {
    "vocab_size": 80,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "initializer_range": 0.4,
    "pad_token_id": 0,
}
HEADS: dict[str, Any] = {"intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
NETWORKS = {
    "Llama": LlamaConfig(**SMALL, **HEADS),
    "a window": MistralConfig(**SMALL, **HEADS, sliding_window=4),
    "states instead of keys": MambaConfig(**SMALL, state_size=4),
    "states beside keys": Lfm2Config(**SMALL, **HEADS, layer_types=["conv", "full_attention"]),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_answers_to_one_context_are_as_likely_as_alone(network: str, base: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(NETWORKS[network]).eval()
    _, tokenizer = load_model(Candidate("x", base), "cpu", "float32", True)
    asked = {"copy abcdef": ["ab", "bcd.", "c", "no!"], "twice ab": ["abab", "ba"], "alone": ["a"], "": ["ab", "b"]}
    asked |= {"five": ["a", "b", "c", "d", "ef"], "of one token": ["a", "b"]}
    words = [(context, answer) for context, answers in asked.items() for answer in answers]
    requests = [Instance("loglikelihood", {}, each, number) for number, each in enumerate(words[::2] + words[1::2])]
    alone = as_lm_eval(model, tokenizer, 4).loglikelihood(requests)
    shared, left = as_lm_eval(model, tokenizer, 4), []
    own_way = shared._loglikelihood_tokens
    shared._loglikelihood_tokens = lambda those, *given, **named: (
        left.append(len(those)),
        own_way(those, *given, **named),
    )[1]
    share_contexts(shared)
    found = shared.loglikelihood(requests)
    assert left == [len(requests) if network.startswith("states") else 1 + 2 + 5 + 2], (
        "alone, after nothing, five, of one token"
    )
    assert [greedy for _, greedy in found] == [greedy for _, greedy in alone]
    assert [value for value, _ in found] == pytest.approx([value for value, _ in alone], abs=1e-4)


def test_a_limit_takes_the_first_items(base: Path, tasks: Path) -> None:
    scorer = Scorer(plain(base), open_tasks(tasks)[1], limit=2)
    assert {scorer.items(name) for name in NAMES} == {2}
    assert scorer.score()["paft_skill"].values


def test_the_fingerprint_is_that_of_what_is_asked(base: Path, tasks: Path) -> None:
    model = plain(base)
    whole, again, part = (Scorer(model, open_tasks(tasks)[1], limit) for limit in (None, None, 2))
    assert [whole.fingerprint(name) for name in NAMES] == [again.fingerprint(name) for name in NAMES]
    assert len({whole.fingerprint(name) for name in NAMES}) == len(NAMES)
    assert all(whole.fingerprint(name) != part.fingerprint(name) for name in NAMES)


def test_nothing_is_tokenised_twice(base: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = plain(base)
    tokenise_once(model)
    scorer = Scorer(model, open_tasks(tasks)[1])
    first = scorer.score()
    monkeypatch.setattr(type(model.tokenizer), "__call__", lambda *_, **__: pytest.fail("tokenised again"))
    # lm-eval itself encodes where answers end, once for each batch.
    monkeypatch.setattr(
        type(model.tokenizer), "encode", lambda _, text, **__: [2] if text == "</s>" else pytest.fail(text)
    )
    assert scorer.score() == first


def test_the_items_of_a_mean_have_it_for_their_mean(base: Path, tasks: Path) -> None:
    measures, opened = open_tasks(tasks)
    scorer = Scorer(plain(base), opened)
    found = scorer.score()
    for measure in measures:
        items = scorer.item_scores(measure, found[measure.task], keep_texts=True)
        assert len({item.item for item in items}) == len(items) == scorer.items(measure.task)
        mean = sum(item.value for item in items) / len(items)
        assert mean == pytest.approx(found[measure.task].values[measure.key], abs=1e-9)
        assert all(item.answer is not None and item.measure == measure.name for item in items)
        bare = scorer.item_scores(measure, found[measure.task])
        assert bare == [item.model_copy(update={"answer": None}) for item in items]


@pytest.mark.parametrize("metric", ["acc", "acc_norm"])
def test_a_choice_says_how_sure_it_was(metric: str, base: Path, tmp_path: Path) -> None:
    """By lm-eval's own likelihoods of the answers; of unequal length, so that the two metrics differ."""
    rows = [{**row, "answers": [row["answers"][0], row["answers"][1][:2]]} for row in make_items(5)]
    write_rows(tmp_path / "items.jsonl", rows)
    listed = [{"metric": metric, "aggregation": "mean", "higher_is_better": True}]
    make_task(tmp_path / "tasks", "choice", tmp_path / "items.jsonl", metric_list=listed)
    ((measure,), opened) = open_measures({"choice": MeasureConfig()}, tmp_path / "tasks")
    model = plain(base)
    scorer = Scorer(model, opened)
    items = scorer.item_scores(measure, scorer.score()["choice"], keep_texts=True)
    for row, item in zip(rows, items, strict=True):
        context = model.apply_chat_template([{"role": "user", "content": row["prompt"]}])
        requests = [Instance("loglikelihood", {}, (context, answer), 0) for answer in row["answers"]]
        scores = [value for value, _ in model.loglikelihood(requests, disable_tqdm=True)]
        scores = [s / len(a) for s, a in zip(scores, row["answers"], strict=True)] if metric == "acc_norm" else scores
        likely = torch.tensor(scores).double().softmax(0)
        assert item.probability == pytest.approx(float(likely.max()), abs=1e-5)
        assert item.answer == row["answers"][int(likely.argmax())]
        assert item.value == (row["right"] == int(likely.argmax()))


@pytest.mark.parametrize("by_size", [True, False])
def test_a_group_that_weighs_its_tasks_alike_has_no_items(by_size: bool, base: Path, tmp_path: Path) -> None:
    for name, count in (("one", 5), ("two", 20)):
        write_rows(tmp_path / f"{name}.jsonl", make_items(count, count))
        make_task(tmp_path / "tasks", name, tmp_path / f"{name}.jsonl")
    group = {"group": "both", "task": ["one", "two"]}
    group |= {"aggregate_metric_list": [{"metric": "acc", "aggregation": "mean", "weight_by_size": by_size}]}
    (tmp_path / "tasks" / "both.yaml").write_text(yaml.safe_dump(group))
    ((measure,), opened) = open_measures({"both": MeasureConfig()}, tmp_path / "tasks")
    scorer = Scorer(plain(base), opened)
    assert len(scorer.item_scores(measure, scorer.score()["both"])) == (25 if by_size else 0)


def test_what_is_no_mean_has_no_items(base: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "items.jsonl", make_items(0))
    metrics = [{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}]
    more = {"output_type": "loglikelihood", "doc_to_choice": None, "doc_to_target": "{{answers[right]}}"}
    make_task(tmp_path / "tasks", "likely", tmp_path / "items.jsonl", metric_list=metrics, **more)
    ((measure,), opened) = open_measures({"likely": MeasureConfig()}, tmp_path / "tasks")
    scorer = Scorer(plain(base), opened)
    assert scorer.item_scores(measure, scorer.score()["likely"]) == []
