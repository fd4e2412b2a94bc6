"""Opening lm-eval's tasks and groups: which number counts, on which items, and every mistake in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from paft_plugin.demo import data
from paft_plugin.errors import PaftError
from paft_plugin.evaluation.candidates import Candidate
from paft_plugin.evaluation.config import PRESETS, MeasureConfig
from paft_plugin.evaluation.results import ArmScore, Measure
from paft_plugin.evaluation.score import score_with_items
from paft_plugin.evaluation.scorer import Scorer
from paft_plugin.evaluation.tasks import Catalogue, open_measures
from paft_plugin.search.validation import open_goals
from tests.evaluation.items import make_items, make_task, write_rows
from tests.evaluation.models import load

FILTERS = {"answer": r"\A(?:sure: |no )?([a-z0-9]+)[.!?]?\Z", "polite": r"\Asure: ([a-z0-9]+)!\Z"}
SUM = [{"metric": "acc", "weight_by_size": True}]


@pytest.fixture(scope="module")
def model() -> HFLM:
    """The demo's base model."""
    return load(Candidate("base", Path(data.__file__).parent / "base"), batch_size=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Choices between answers in two tasks of different sizes and their group, and copying, read by two filters."""
    root = tmp_path_factory.mktemp("open")
    data.write_data(root / "data", 0, sft_rows=1, preference_rows=1, items=12)
    for seed, (name, count) in enumerate({"few": 5, "many": 15}.items()):
        write_rows(root / f"{name}.jsonl", make_items(seed, count))
        make_task(root / "tasks", name, root / f"{name}.jsonl", split="test", tag=["both"])
    make_group(root / "tasks", "group", ["few", "many"], SUM)
    make_generation(root / "tasks", "copying", root / "data" / "test" / "words.jsonl")
    return root / "tasks"


def make_group(folder: Path, name: str, tasks: list[Any], sums: list[dict[str, Any]] | None = None) -> None:
    content: dict[str, Any] = {"group": name, "task": tasks}
    if sums:
        content["aggregate_metric_list"] = sums
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


def make_generation(folder: Path, name: str, items: Path) -> None:
    filters = [
        {"name": each, "filter": [{"function": "regex", "regex_pattern": pattern}, {"function": "take_first"}]}
        for each, pattern in FILTERS.items()
    ]
    make_task(
        folder,
        name,
        items,
        split="test",
        output_type="generate_until",
        doc_to_choice=None,
        doc_to_target="answer",
        generation_kwargs={"until": ["</s>"], "max_gen_toks": 16, "do_sample": False},
        filter_list=filters,
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )


def by_lm_eval(model: HFLM, folder: Path, name: str, num_fewshot: int | None = None) -> dict[str, Any]:
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    report = simple_evaluate(
        model, tasks=[name], task_manager=manager, apply_chat_template=True, num_fewshot=num_fewshot,
        fewshot_random_seed=0,
    )  # fmt: skip
    return report["results"][name]


def ours(model: HFLM, folder: Path, **measures: MeasureConfig) -> ArmScore:
    settled, tasks = open_measures(measures, folder)
    return score_with_items(Scorer(model, tasks), settled)[0]


def problems(folder: Path, **measures: MeasureConfig) -> list[str]:
    with pytest.raises(PaftError) as caught:
        open_measures(measures, folder)
    assert all("\n" not in problem for problem in caught.value.problems)
    return caught.value.problems


def test_a_group_scores_what_lm_eval_says_of_it_as_a_whole(model: HFLM, folder: Path) -> None:
    theirs = by_lm_eval(model, folder, "group")
    settled, tasks = open_measures({"group": MeasureConfig(name="choices")}, folder)
    assert settled == [Measure("choices", "group", "acc", "none", True)]
    assert list(tasks["group"].parts) == ["few", "many"]
    score = score_with_items(Scorer(model, tasks), settled)[0]
    assert score == ArmScore(
        scores={"choices": theirs["acc,none"]},
        stderr={"choices": theirs["acc_stderr,none"]},
        n={"choices": 20},
    )
    # As it is weighted by size, it is the share of all items that were right.
    few, many = (ours(model, folder, **{name: MeasureConfig()}).scores[name] for name in ("few", "many"))
    assert few != many  # or this would say nothing
    assert theirs["acc,none"] == pytest.approx((5 * few + 15 * many) / 20)


def test_a_group_of_groups_too(model: HFLM, folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_text(file.read_text())
    make_group(tmp_path, "inner", ["few"], SUM)
    make_group(tmp_path, "outer", ["inner", "many"], SUM)
    score = ours(model, tmp_path, outer=MeasureConfig())
    assert score.scores["outer"] == by_lm_eval(model, tmp_path, "outer")["acc,none"]
    assert score.n == {"outer": 20}


def test_each_filter_is_a_number_of_its_own(model: HFLM, folder: Path) -> None:
    theirs = by_lm_eval(model, folder, "copying")
    found = {}
    for name in FILTERS:
        score = ours(model, folder, copying=MeasureConfig(filter=name))
        found[name] = score.scores["copying"]
        assert score.scores["copying"] == theirs[f"exact_match,{name}"]
        assert score.stderr["copying"] == theirs[f"exact_match_stderr,{name}"]
    assert found["answer"] > found["polite"]
    assert problems(folder, copying=MeasureConfig()) == [
        "evaluation.measures.copying.filter: must be named. It has answer, polite."
    ]
    assert problems(folder, copying=MeasureConfig(filter="polit", metric="acc")) == [
        "evaluation.measures.copying.metric: is acc, which the task has not. It has exact_match.",
        "evaluation.measures.copying.filter: is polit, which the task has not. It has answer, polite.",
    ]


def test_tasks_of_several_kinds_at_once_score_what_each_does_alone(model: HFLM, folder: Path) -> None:
    measures = {"group": MeasureConfig(), "copying": MeasureConfig(filter="answer")}
    together = ours(model, folder, **measures)
    for name, measure in measures.items():
        alone = ours(model, folder, **{name: measure})
        assert all(getattr(together, key)[name] == getattr(alone, key)[name] for key in ("scores", "stderr", "n"))


def test_items_are_those_that_lm_eval_scores_by_itself(tmp_path: Path) -> None:
    """The test split where there is one, else the validation split."""
    items = {split: make_items(seed, 4) for seed, split in enumerate(("validation", "test"))}
    for split, rows in items.items():
        write_rows(tmp_path / f"{split}.jsonl", rows)
    files = {split: str(tmp_path / f"{split}.jsonl") for split in items}
    kwargs = {"data_files": files, "cache_dir": str(tmp_path / "cache")}
    make_task(tmp_path / "tasks", "both", Path(), test_split="test", dataset_kwargs=kwargs)
    make_task(tmp_path / "tasks", "one", tmp_path / "validation.jsonl")
    _, tasks = open_measures({"both": MeasureConfig(), "one": MeasureConfig()}, tmp_path / "tasks")
    assert list(tasks["both"].parts["both"].eval_docs) == items["test"]
    assert list(tasks["one"].parts["one"].eval_docs) == items["validation"]


def test_direction_is_the_task_s_unless_it_is_given(folder: Path) -> None:
    (measure,), _ = open_measures({"few": MeasureConfig(direction="minimize")}, folder)
    assert not measure.higher_is_better


def test_a_group_whose_tasks_disagree_on_the_direction_must_be_told(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "few.yaml").write_text((folder / "few.yaml").read_text())
    many = yaml.safe_load((folder / "many.yaml").read_text())
    many["metric_list"][0]["higher_is_better"] = False
    (tmp_path / "many.yaml").write_text(yaml.safe_dump(many))
    make_group(tmp_path, "group", ["few", "many"], SUM)
    (problem,) = problems(tmp_path, group=MeasureConfig())
    assert problem.startswith("evaluation.measures.group.direction: must be named")
    assert open_measures({"group": MeasureConfig(direction="maximize")}, tmp_path)[0][0].higher_is_better


def test_solved_examples_come_before_each_question(model: HFLM, tmp_path: Path) -> None:
    for seed, split in enumerate(("validation", "test")):
        write_rows(tmp_path / f"{split}.jsonl", make_items(seed, 15))
    files = {split: str(tmp_path / f"{split}.jsonl") for split in ("validation", "test")}
    kwargs = {"data_files": files, "cache_dir": str(tmp_path / "cache")}
    shared = {"test_split": "test", "fewshot_split": "validation", "dataset_kwargs": kwargs}
    make_task(tmp_path / "tasks", "open", Path(), num_fewshot=None, **shared)
    make_task(tmp_path / "tasks", "none", Path(), num_fewshot=0, **shared)
    make_task(tmp_path / "tasks", "alone", tmp_path / "test.jsonl", split="test", num_fewshot=None)
    make_group(tmp_path / "tasks", "group", ["open", "none"], SUM)

    settled, tasks = open_measures({"open": MeasureConfig(num_fewshot=2)}, tmp_path / "tasks")
    scorer = Scorer(model, tasks)
    assert all(request.args[0].count("copy ") == 3 for request in tasks["open"].parts["open"].instances)
    theirs = by_lm_eval(model, tmp_path / "tasks", "open", num_fewshot=2)
    assert score_with_items(scorer, settled)[0].scores["open"] == theirs["acc,none"]

    two = MeasureConfig(num_fewshot=2)
    where = "evaluation.measures"
    assert problems(tmp_path / "tasks", none=two, alone=two, group=two) == [
        f"{where}.none.num_fewshot: is 2, but the task itself demands 0. Leave it out.",
        f"{where}.alone.num_fewshot: is 2, but the task has no other items to take examples from. Leave it out.",
        f"{where}.group.num_fewshot: is 2, but the task of none itself demands 0. Leave it out.",
    ]


def test_what_cannot_be_a_measure_says_why(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_text(file.read_text())
    make_group(tmp_path, "unsummed", ["few", "many"])
    make_task(tmp_path, "unsafe", folder.parent / "few.jsonl", split="test", unsafe_code=True)
    assert problems(tmp_path, unsummed=MeasureConfig(), both=MeasureConfig(), unsafe=MeasureConfig()) == [
        "evaluation.measures.unsummed: a group without a number of its own (aggregate_metric_list, of a metric and a "
        "filter that its tasks have). Name its tasks: few, many.",
        "evaluation.measures.both: a tag, which has no number of its own. Name its tasks: few, many.",
        "evaluation.measures.unsafe: runs the code that a model writes. Score it in a sandbox, with lm-eval's own command.",
    ]
    make_group(tmp_path, "elsewhere", ["few", "gsm8k"], SUM)
    (problem,) = problems(tmp_path, elsewhere=MeasureConfig())
    assert problem.endswith(f"There is no gsm8k in {tmp_path}.")
    make_group(tmp_path, "unfiltered", ["few", "many"], [{"metric": "acc", "filter_list": ["strict"]}])
    (problem,) = problems(tmp_path, unfiltered=MeasureConfig())
    assert problem.startswith("evaluation.measures.unfiltered: a group without a number of its own")
    (problem,) = problems(tmp_path, group=MeasureConfig(), few=MeasureConfig())
    assert problem.startswith("evaluation.measures: few and group both have few")


def test_bad_tasks_and_items_are_one_line_each_and_all_at_once(tmp_path: Path) -> None:
    rows = make_items(1, 5)
    write_rows(tmp_path / "items.jsonl", rows)
    write_rows(tmp_path / "holes.jsonl", [*rows[:2], {**rows[2], "right": None}, *rows[3:]])
    (tmp_path / "cut.jsonl").write_text((tmp_path / "items.jsonl").read_text() + '{"prompt": "copy ab", "ans\n')
    for name in ("items", "holes", "cut", "gone"):
        make_task(tmp_path / "tasks", name, tmp_path / f"{name}.jsonl", split="test")
    make_task(tmp_path / "tasks", "template", tmp_path / "items.jsonl", split="test", doc_to_text="{{ prompt ")
    make_task(tmp_path / "tasks", "absent", tmp_path / "items.jsonl", split="test", doc_to_text="{{ promt }}")
    names = ["items", "holes", "cut", "gone", "template", "absent", "itms"]
    found = problems(tmp_path / "tasks", **{name: MeasureConfig() for name in names})
    starts = (
        "holes: item 3 has no right. Correct the items.",
        "cut: cannot be opened: JSON parse error: ",
        "gone: cannot be opened: Unable to find",
        "template: cannot be opened: ",
        "absent: cannot be opened: 'promt' is undefined",
        f"itms: no such task in {tmp_path / 'tasks'} nor of lm-eval. Did you mean items?",
    )
    assert len(found) == len(starts)
    for problem, start in zip(found, starts, strict=True):
        assert problem.startswith(f"evaluation.measures.{start}")
    assert "cut.jsonl" in found[1]


def test_a_function_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    write_rows(tmp_path / "items.jsonl", make_items(1, 5))
    make_task(tmp_path / "tasks", "coded", tmp_path / "items.jsonl")
    file = tmp_path / "tasks" / "coded.yaml"
    file.write_text(file.read_text().replace("doc_to_text: prompt", "doc_to_text: !function nowhere.prompt"))
    with pytest.raises(PaftError, match=r"^evaluation\.measures\.coded: cannot be opened: [^\n]*$"):
        open_measures({"coded": MeasureConfig()}, tmp_path / "tasks", trusted=True)
    with pytest.raises(PaftError, match=r"^search\.objectives\.coded: cannot be opened: .*nowhere"):
        open_goals({"coded": MeasureConfig()}, tmp_path / "tasks", trusted=True)


def test_a_folder_with_a_file_that_is_no_yaml_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("task: [")
    with pytest.raises(PaftError, match=r"broken\.yaml: no valid YAML"):
        Catalogue(tmp_path)


@pytest.mark.slow  # it looks through thousands of files
def test_lm_eval_s_own_tasks_are_known_by_name(tmp_path: Path) -> None:
    """Beside those of a folder, which are meant first; presets ask for what there is, and need the hub."""
    write_rows(tmp_path / "items.jsonl", make_items(1, 5))
    for name in ("mine", "gsm8k"):
        make_task(tmp_path / "tasks", name, tmp_path / "items.jsonl")
    catalogue = Catalogue(tmp_path / "tasks")
    assert len(catalogue.single_tasks) == 2
    assert [catalogue.kind(name, "x") for name in ("gsm8k", "mmlu", "truthfulqa")] == ["task", "group", "tag"]
    assert catalogue.config("gsm8k", "x")["output_type"] == "multiple_choice"
    with pytest.raises(PaftError, match=r"^here: no such task in .*tasks nor of lm-eval\. Did you mean gsm8k\?$"):
        catalogue.kind("gsm8kk", "here")
    with pytest.raises(
        PaftError, match=r"^x: cannot be opened: .* It needs the hub \(.*ai2_arc\), and HF_HUB_OFFLINE is set"
    ):
        catalogue.open("arc_challenge", "x")

    own = Catalogue(None)
    for measures in PRESETS.values():
        for task, settings in measures.items():
            assert own.kind(task, task) in ("task", "group")
            for part in parts(own, task):
                metrics = {each["metric"]: each for each in part["metric_list"]}
                assert metrics[settings["metric"]]["aggregation"] == "mean"
                filters = [each["name"] for each in part.get("filter_list") or [{"name": "none"}]]
                assert settings.get("filter", "none") in filters
                assert part.get("num_fewshot") in (None, settings.get("num_fewshot")) or "num_fewshot" not in settings


def parts(catalogue: Catalogue, name: str) -> list[dict[str, Any]]:
    """The YAML of a task, or of the first task of each part of a group."""
    if catalogue.kind(name, name) == "task":
        return [catalogue._yaml(name, "simple")]  # functions of some need libraries that are not there
    entry = catalogue._manager.task_index[name]
    inner = entry["task"] if entry["type"] == "tag" else catalogue._yaml(name, "simple")["task"]
    return [part for each in inner for part in parts(catalogue, each)[:1]]
