"""The rows of a joint training: those of SFT as pairs of equal sides, each as often as its own training sees it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from paft_plugin.errors import PaftError
from paft_plugin.pipeline.arms import Setup, open_setup
from paft_plugin.pipeline.joint_rows import JointRequest, write_joint_rows
from paft_plugin.pipeline.plan import make_plan
from tests.pipeline.rows import turn
from tests.pipeline.runs import edit, write_run

HELLO, HI, MORE = turn("user", "hello"), turn("assistant", "hi there"), turn("user", "and more?")


def request_of(setup: Setup) -> JointRequest:
    (text,) = (text for path, text in make_plan(setup).files.items() if path.name == "joint-rows.json")
    return JointRequest.model_validate_json(text)


def rows_of(setup: Setup) -> list[dict[str, Any]]:
    request = request_of(setup)
    write_joint_rows(request)
    return [json.loads(line) for line in (request.folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()]


def joint(folder: Path, data: Mapping[str, Any], sft: Mapping[str, Any] | None = None, **keys: Any) -> Path:
    """A run whose SFT rows are `data`, with a `joint` arm."""
    file = write_run(folder, compare=["joint"], evaluation=False, **keys)
    text = "".join(json.dumps(row) + "\n" for row in data["rows"])
    (folder / "data" / "sft.jsonl").write_text(text, encoding="utf-8")
    entry = {"path": "data/sft.jsonl", "ds_type": "json", "split": "train", **data["entry"]}
    edit(file, sft={"config": "sft.yml", "overrides": {"datasets": [entry], **(sft or {})}})
    return file


def test_sft_rows_are_pairs_of_equal_sides_and_pairs_are_as_their_own_training_has_them(tmp_path: Path) -> None:
    setup = open_setup(write_run(tmp_path, sft_steps=4, preference_steps=2, compare=["joint"], evaluation=False))
    rows = rows_of(setup)
    same = [row for row in rows if row["chosen"] == row["rejected"]]
    assert (len(same), len(rows) - len(same)) == (4 * 8, 2 * 8), "each training's steps, 8 rows each"
    for row in rows:
        assert row["prompt"].startswith("<s><|user|>")
        assert row["prompt"].endswith("<|assistant|>")
        assert row["chosen"].endswith("</s>")


def test_the_tokens_of_sft_rows_are_those_of_sft(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    talk = {"messages": [HELLO, HI, MORE, turn("assistant", "no")]}
    file = joint(tmp_path, {"rows": [talk], "entry": {"type": "chat_template"}}, {"max_steps": None, "num_epochs": 1})
    first, second = (row for row in rows_of(open_setup(file)) if row["chosen"] == row["rejected"])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    whole = tokenizer.apply_chat_template(talk["messages"], return_dict=True)["input_ids"]
    last = max((first, second), key=lambda row: len(row["prompt"]))
    assert tokenizer(last["prompt"] + last["chosen"])["input_ids"][-len(whole) :] == whole[-len(whole) :]
    assert {row["chosen"] for row in (first, second)} == {"hi there</s>", "no</s>"}, "both turns of the assistant"


def test_each_row_is_seen_as_often_as_in_its_own_training(tmp_path: Path) -> None:
    chats = [{"messages": [turn("user", f"add {n}+1"), turn("assistant", f"{n + 1}.")]} for n in range(10)]
    epochs = {"max_steps": None, "num_epochs": 3}
    file = joint(tmp_path, {"rows": chats, "entry": {"type": "chat_template"}}, epochs, preference_steps=2)
    times = Counter(row["chosen"] for row in rows_of(open_setup(file)) if row["chosen"] == row["rejected"])
    assert set(times.values()) == {3}
    assert len(times) == 10
    edit(file, preference={"config": "dpo.yml", "overrides": epochs})
    setup = open_setup(file)
    assert setup.branches["joint"].content["num_epochs"] == 3, "all go through their rows equally often"
    assert max(Counter(row["chosen"] for row in rows_of(setup) if row["chosen"] == row["rejected"]).values()) == 1


def test_packed_rows_are_counted_by_their_tokens(tmp_path: Path) -> None:
    chats = [{"messages": [turn("user", f"add {n}+1"), turn("assistant", f"{n + 1}.")]} for n in range(10)]
    packed = {"sample_packing": True, "max_steps": 4}
    rows = rows_of(open_setup(joint(tmp_path, {"rows": chats, "entry": {"type": "chat_template"}}, packed)))
    assert sum(row["chosen"] == row["rejected"] for row in rows) > 4 * 8, "several rows in each sequence"


@pytest.mark.parametrize("packed", [False, True])
def test_every_answer_of_a_conversation_is_seen_as_often_as_the_conversation(tmp_path: Path, packed: bool) -> None:
    answers = 3
    talks = [
        {"messages": [one for letter in "abc" for one in (HELLO, turn("assistant", f"{n}{letter}."))]}
        for n in range(10)
    ]
    settings = {"max_steps": 4, "micro_batch_size": 5, "sequence_len": 60, "sample_packing": packed}
    file = joint(tmp_path, {"rows": talks, "entry": {"type": "chat_template"}}, settings)
    seen = Counter(row["chosen"] for row in rows_of(open_setup(file)) if row["chosen"] == row["rejected"])
    talk = 1 + answers * (len("hello") + 2 + len("0a.") + 1)  # tokens: all characters but for the marks of turn and end
    conversations = 4 * 5 * 60 / talk if packed else 4 * 5
    assert len(seen) == 10 * answers
    assert seen.total() == pytest.approx(conversations * answers, abs=1)


def test_kto_takes_sft_rows_for_wanted_answers(tmp_path: Path) -> None:
    kto = {"rl": "kto", "rl_beta": 0.5, "remove_unused_columns": False}
    pairs = [{"prompt": "a", "completion": "b", "label": False}]
    (tmp_path / "kto.jsonl").write_text(json.dumps(pairs[0]) + "\n", encoding="utf-8")
    named = {"field_prompt": "prompt", "field_completion": "completion", "field_label": "label"}
    entry = {"path": "kto.jsonl", "ds_type": "json", "split": "train", "type": named}
    file = write_run(tmp_path, sft_steps=1, preference_steps=1, compare=["joint"], evaluation=False)
    edit(file, preference={"config": "dpo.yml", "overrides": {**kto, "datasets": [entry]}})
    setup = open_setup(file)
    assert Counter(row["label"] for row in rows_of(setup)) == {True: 8, False: 8}
    assert any("KTO has no SFT loss" in note for note in setup.branches["joint"].notes)


def test_a_joint_training_takes_the_larger_rate_and_says_so_unless_it_is_told(tmp_path: Path) -> None:
    compare = {"joint": {}, "slow": {"joint": {"overrides": {"learning_rate": 1e-6}}}}
    file = write_run(tmp_path, compare=compare)
    edit(tmp_path / "dpo.yml", learning_rate=0.5)
    branches = open_setup(file, [], False).branches
    assert branches["joint"].content["learning_rate"] == 0.5
    assert "learning_rate: 0.5, the larger of the branches'" in branches["joint"].notes[0]
    assert branches["slow"].notes == ()


def test_a_loss_that_only_the_joint_training_has_comes_with_the_sft_loss(tmp_path: Path) -> None:
    forms = {
        "orpo": {"rl": "orpo", "orpo_alpha": 0.1},
        "simpo": {"rl": "simpo", "simpo_gamma": 1.0},
        "hinge": {"dpo_loss_type": ["hinge"]},
        "alone": {"learning_rate": 1e-6},
    }
    compare = {name: {"joint": {"overrides": overrides}} for name, overrides in forms.items()}
    branches = open_setup(write_run(tmp_path, compare=compare), [], False).branches
    losses = {name: branches[name].content.get("dpo_loss_type") for name in forms}
    assert losses == {"orpo": None, "simpo": None, "hinge": ["hinge", "sft"], "alone": ["sigmoid", "sft"]}
    assert branches["simpo"].content["cpo_alpha"] == 1.0
    file = write_run(tmp_path / "orpo", compare={"dpo": {"joint": {"overrides": {"rl": "dpo", "orpo_alpha": None}}}})
    edit(file, preference={"config": "dpo.yml", "overrides": {"rl": "orpo", "remove_unused_columns": False}})
    assert open_setup(file, [], False).branches["dpo"].content["dpo_loss_type"] == ["sigmoid", "sft"]


def test_a_joint_training_by_a_loss_with_other_rows_is_refused(tmp_path: Path) -> None:
    file = write_run(tmp_path, compare={"kto": {"joint": {"overrides": {"rl": "kto"}}}})
    with pytest.raises(PaftError, match=r"overrides\.rl: kto: its rows are others than those of rl: dpo"):
        open_setup(file, [], False)


def test_rows_without_prompts_are_refused(tmp_path: Path) -> None:
    file = joint(tmp_path, {"rows": [{"text": "once upon a time"}], "entry": {"type": "completion"}})
    with pytest.raises(PaftError, match="none of its rows has both a prompt and an answer"):
        rows_of(open_setup(file))


def test_nothing_that_is_held_out_is_trained_on(tmp_path: Path) -> None:
    setup = open_setup(write_run(tmp_path, compare=["joint"], evaluation={"held_out": {"sft": 4, "preference": 4}}))
    request = request_of(setup)
    paths = [entry["path"] for source in request.sources for entry in source.question.content["datasets"]]
    assert all(path.startswith(str(setup.run_dir / "held_out" / "training")) for path in paths)
    stages = {stage.name: stage.needs for stage in make_plan(setup).stages}
    assert stages["joint-rows"] == ("hold-out",)
    assert stages["joint"] == ("joint-rows",)
    (text,) = (text for path, text in make_plan(setup).files.items() if path.name == "joint.yml")
    assert f"path: {setup.run_dir}/joint-rows/rows.jsonl" in text
