"""`evaluation:`: short forms, defaults, everything that is wrong at once; and as JSON it is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paft_plugin.errors import PaftError
from paft_plugin.evaluation.config import PRESETS, EvaluationConfig, MeasureConfig, read_measures
from paft_plugin.files import write_json
from paft_plugin.schema import validate


def read(folder: Path, **content: Any) -> EvaluationConfig:
    return validate(EvaluationConfig, content, folder / "paft.yml")


def problems(folder: Path, **content: Any) -> list[str]:
    with pytest.raises(PaftError) as caught:
        read(folder, **content)
    assert all("\n" not in problem for problem in caught.value.problems)
    return [problem.removeprefix(f"{folder / 'paft.yml'}: ") for problem in caught.value.problems]


def test_a_list_of_tasks_is_enough(tmp_path: Path) -> None:
    config = read(tmp_path, measures=["gsm8k", "mmlu"])
    assert config.measures == {"gsm8k": MeasureConfig(), "mmlu": MeasureConfig()}
    assert (config.tasks, config.skill, config.preference, config.limit) == (None, (), (), None)
    assert (config.batch_size, config.device, config.dtype, config.apply_chat_template) == (8, "auto", "auto", True)


def test_a_mapping_says_which_number_and_may_say_nothing(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    measures = {"gsm8k": {"name": "sums", "filter": "strict-match", "num_fewshot": 5}, "mmlu": None}
    config = read(tmp_path, measures=measures, tasks="tasks", skill="sums", preference="mmlu")
    assert config.measures["gsm8k"].filter == "strict-match"
    assert config.measures["mmlu"] == MeasureConfig()
    assert config.tasks == tmp_path / "tasks"
    assert (config.skill, config.preference) == (("sums",), ("mmlu",))


def test_all_mistakes_are_said_at_once(tmp_path: Path) -> None:
    said = problems(
        tmp_path,
        measures={"gsm8k": {"name": "sums", "filtr": "x", "num_fewshot": -1, "direction": "up"}},
        tasks="nowhere",
        limit=0,
        batch_size=0,
        dtype="int8",
        batchsize=3,
    )
    for start in (
        "measures.gsm8k.filtr: no such key. Did you mean filter?",
        "measures.gsm8k.num_fewshot: ",
        "measures.gsm8k.direction: ",
        f"tasks: {tmp_path / 'nowhere'} is no folder",
        "limit: ",
        "batch_size: ",
        "dtype: ",
        "batchsize: no such key. Did you mean batch_size?",
    ):
        assert [problem for problem in said if problem.startswith(start)], (start, said)
    assert len(said) == 8


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"held_out": False}, "measures: missing, while held_out: false leaves nothing else"),
        ({"held_out": False, "measures": []}, "measures: missing"),
        ({"held_out": True}, "held_out: give a number or a share for each branch"),
        ({"held_out": {"sft": True}}, "held_out: sft: a number of rows, 0 for none, or a share below 1, not True."),
        ({"held_out": {"sft": 1.5}}, "held_out: sft: a number of rows"),
        ({"held_out": {"sft": -1}}, "held_out: sft: a number of rows"),
        ({"retained": 3}, "retained: give a file of rows, or a list of lm-eval tasks."),
        ({"measures": ["a", "a"]}, "measures: a is there twice."),
        ({"measures": {"a": {"name": "b"}, "b": None}}, "measures: two are called b. Name them apart."),
        ({"held_out": False, "measures": ["gsm8k"], "skill": "gsm8"}, "skill: no such measure. Did you mean gsm8k?"),
        (
            {"held_out": False, "measures": {"gsm8k": {"name": "sums"}}, "preference": "gsm8k"},
            "preference: no such measure. There are sums.",
        ),
    ],
)
def test_a_mistake_says_where_and_what_to_do(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    (said,) = problems(tmp_path, **content)
    assert said.startswith(message)


def test_as_json_it_is_the_same_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tasks").mkdir()
    measures = {"gsm8k": {"name": "sums", "direction": "maximize"}, "mmlu": None}
    (tmp_path / "kept.jsonl").touch()
    config = read(
        tmp_path, measures=measures, tasks="tasks", skill="sums", limit=5, dtype="bfloat16", retained="kept.jsonl"
    )
    file = tmp_path / "elsewhere" / "measures.json"
    write_json(file, config.model_dump(mode="json"))
    monkeypatch.chdir("/")
    assert read_measures(file) == config


def test_a_preset_stands_for_tasks_and_what_is_said_of_one_of_them_counts() -> None:
    config = EvaluationConfig.model_validate({"measures": ["ifeval", "open-llm-leaderboard-v1", "mine"]})
    assert list(config.measures) == ["ifeval", *PRESETS["open-llm-leaderboard-v1"], "mine"]
    assert config.measures["gsm8k"] == MeasureConfig(metric="exact_match", filter="strict-match", num_fewshot=5)
    measures = {
        "open-llm-leaderboard-v1": {},
        "gsm8k": {"num_fewshot": 0},
        "ifeval": {"metric": "inst_level_strict_acc"},
    }
    config = EvaluationConfig.model_validate({"measures": measures})
    assert config.measures["gsm8k"] == MeasureConfig(num_fewshot=0)
    assert config.measures["ifeval"].metric == "inst_level_strict_acc"
    assert EvaluationConfig.model_validate(config.model_dump(mode="json")) == config
    with pytest.raises(
        ValueError, match=r"open-llm-leaderboard-v2: stands for leaderboard_ifeval, .* takes no settings"
    ):
        EvaluationConfig.model_validate({"measures": {"open-llm-leaderboard-v2": {"num_fewshot": 1}}})


def test_the_tasks_of_what_should_be_retained_are_asked_as_well() -> None:
    config = EvaluationConfig.model_validate({"measures": ["a"], "retained": ["b"]})
    assert config.by_task == {"a": MeasureConfig(), "b": MeasureConfig(name="retained")}
    config = EvaluationConfig.model_validate({"measures": ["a"], "retained": ["a", "b", "c"]})
    assert config.by_task == {name: MeasureConfig() for name in "abc"}
