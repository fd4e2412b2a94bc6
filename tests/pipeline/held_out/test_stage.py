"""The stage on real data sets: the tokens are those of a training, nothing is trained on and scored, nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict, load_dataset
from transformers import AutoTokenizer

from paft_plugin.evaluation.held_out_rows import AnswerRow, HeldOutSummary, PairRow, read_rows
from paft_plugin.pipeline.arms import Setup
from paft_plugin.pipeline.held_out.request import request_beside, request_of, trained_on_rest
from paft_plugin.pipeline.held_out.stage import hold_out
from tests.pipeline.held_out.trainings import answer_of, pair_of, seen_by_training
from tests.pipeline.room import Room
from tests.pipeline.rows import turn


def held(room: Room, **changes: Any) -> tuple[Setup, HeldOutSummary]:
    """What the stage of a run with these changes does."""
    setup = room.setup(**{"evaluation": {}, **changes})
    request = request_of(setup)
    assert request is not None
    return setup, hold_out(request)


def answers(setup: Setup, name: str = "sft") -> list[AnswerRow]:
    return read_rows(setup.run_dir / "held_out" / f"{name}.jsonl", AnswerRow)


def pairs(setup: Setup, name: str = "preference") -> list[PairRow]:
    return read_rows(setup.run_dir / "held_out" / f"{name}.jsonl", PairRow)


def rest(setup: Setup, name: str) -> list[dict[str, Any]]:
    """The rows that are left for a training."""
    (entry,) = trained_on_rest(setup, setup.branches[name]).content["datasets"]
    return list(load_dataset("parquet", data_files=entry["path"], split="train"))


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [turn("user", question), turn("assistant", answer)]}


def chats(count: int) -> list[dict[str, Any]]:
    return [chat(f"add {index}+{index}", str(2 * index)) for index in range(count)]


SFT = {"type": "chat_template", "field_messages": "messages"}


def pair(index: int) -> dict[str, Any]:
    return {"prompt": f"say {index}", "chosen": f"yes {index}", "rejected": "no"}


USER_PAIRS = {"field_prompt": "prompt", "field_chosen": "chosen", "field_rejected": "rejected"}


def seen(setup: Setup, content: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    return seen_by_training({**content, "base_model": str(setup.base)}, folder)


def test_the_tokens_are_those_of_the_training_and_no_row_is_in_both(room: Room, tmp_path: Path) -> None:
    setup, summary = held(room, sft={"datasets": room.data("sft.jsonl", chats(60), **SFT)})
    assert summary.branches["sft"].model_dump() == {"rows": 60, "test": 6, "validation": 2, "shared": 0, "unfit": {}}
    branch = setup.branches["sft"]
    whole = [answer_of(row) for row in seen(setup, dict(branch.content), tmp_path / "whole")]
    left = [answer_of(row) for row in seen(setup, dict(trained_on_rest(setup, branch).content), tmp_path / "left")]
    scored = [json.dumps([row.prompt, row.answer]) for row in answers(setup)]
    assert sorted([*scored, *left]) == sorted(whole)


def test_no_answer_that_is_scored_is_taught_as_an_earlier_turn_of_another_row(room: Room) -> None:
    """axolotl trains all of the assistant's turns, so a longer conversation teaches what a shorter one is scored on."""
    short = chats(40)
    more = [turn("user", "and more?"), turn("assistant", "no")]
    long = [{"messages": [*row["messages"], *more]} for row in short]
    setup, summary = held(room, sft={"datasets": room.data("sft.jsonl", [*short, *long], **SFT)})
    tokenizer = AutoTokenizer.from_pretrained(setup.base)
    scored = {tokenizer.decode(row.prompt, skip_special_tokens=True).strip() for row in answers(setup)}
    taught = {row["messages"][0]["content"] for row in rest(setup, "sft")}
    assert summary.branches["sft"].rows == 80
    assert len(scored) == summary.branches["sft"].test + summary.branches["sft"].validation
    assert scored & {row["messages"][0]["content"] for row in short}, "some of the shorter ones are scored"
    assert not scored & taught
    assert len(taught) + len(scored) >= 40, "and no more than those are left out"


SIDES = ("chosen", "rejected")
WHOLE_PAIRS = [
    {side: [turn("user", row["prompt"]), turn("assistant", row[side])] for side in SIDES}
    for row in map(pair, range(40))
]
STRATEGIES = {
    "dpo": ([pair(index) for index in range(40)], USER_PAIRS, {}),
    "orpo": (
        WHOLE_PAIRS,
        "chat_template.argilla",
        {"rl_beta": None, "orpo_alpha": 0.1, "remove_unused_columns": False},
    ),
    "simpo": ([pair(index) for index in range(40)], USER_PAIRS, {"cpo_alpha": 0.5, "simpo_gamma": 0.5}),
}


@pytest.mark.parametrize("rl", ["dpo", *(pytest.param(rl, marks=pytest.mark.slow) for rl in ("orpo", "simpo"))])
def test_pairs_are_made_into_tokens_as_their_trainer_does(room: Room, tmp_path: Path, rl: str) -> None:
    rows, kind, keys = STRATEGIES[rl]
    datasets = room.data("pairs.jsonl", rows, type=kind)
    setup, _ = held(room, preference={"rl": rl, "datasets": datasets, **keys})
    branch = setup.branches[rl]
    whole = [pair_of(row) for row in seen(setup, dict(branch.content), tmp_path / "whole")]
    left = [pair_of(row) for row in seen(setup, dict(trained_on_rest(setup, branch).content), tmp_path / "left")]
    scored = [json.dumps([row.prompt, row.chosen, row.rejected]) for row in pairs(setup)]
    assert len(scored) == 5
    assert sorted([*scored, *left]) == sorted(whole)


def test_every_kind_of_data_set_is_parted_and_the_user_s_files_stay(room: Room, tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()
    rows = [{"instruction": f"add {index} and {index}", "input": "", "output": f"n{2 * index}"} for index in range(120)]
    (given / "array.json").write_text(json.dumps(rows[:20]))
    Dataset.from_list(rows[20:40]).to_csv(str(given / "table.csv"))
    Dataset.from_list(rows[40:60]).to_parquet(str(given / "table.parquet"))
    DatasetDict({"train": Dataset.from_list(rows[60:80]), "test": Dataset.from_list(rows[:5])}).save_to_disk(
        given / "saved"
    )
    (given / "folder").mkdir()
    for name, part in (("one", rows[80:90]), ("two", rows[90:100])):
        (given / "folder" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    (given / "sliced.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[100:]))
    before = {file: file.read_bytes() for file in given.rglob("*") if file.is_file()}
    entries: list[dict[str, Any]] = [
        {"path": str(given / "array.json"), "ds_type": "json"},
        {"path": str(given / "table.csv")},
        {"path": str(given / "table.parquet"), "ds_type": "parquet", "split": "train"},
        {"path": str(given / "saved"), "split": "train"},
        {
            "path": str(given / "folder"),
            "ds_type": "json",
            "data_files": [str(file) for file in sorted((given / "folder").iterdir())],
            "split": "train",
        },
        {"path": str(given / "sliced.jsonl"), "ds_type": "json", "split": "train[:10]"},
    ]
    kind = {"field_instruction": "instruction", "field_output": "output", "no_input_format": "{instruction}"}
    sft = {"datasets": [{**entry, "type": kind, "shards": 2} for entry in entries]}
    setup, summary = held(room, sft=sft, evaluation={"held_out": {"sft": 20}})
    counts = summary.branches["sft"]
    assert (counts.rows, counts.test, counts.validation, counts.unfit) == (110, 20, 5, {})
    assert {file: file.read_bytes() for file in given.rglob("*") if file.is_file()} == before
    left = trained_on_rest(setup, setup.branches["sft-l1"]).content["datasets"]
    assert [set(entry) for entry in left] == [{"path", "split", "type", "shards"}] * 6
    parts = [list(load_dataset("parquet", data_files=entry["path"], split="train")) for entry in left]
    assert sum(map(len, parts)) == 85
    assert all(len(part) < 20 for part in parts), "of each"
    scored = {row.source for row in answers(setup)}
    assert len(scored) > 3
    questions = {row["instruction"] for part in parts for row in part}
    assert questions <= {row["instruction"] for row in rows[:110]}


def test_a_row_is_the_same_in_any_file_and_order(room: Room) -> None:
    rows = chats(60)
    one = held(room, sft={"datasets": room.data("one.jsonl", rows, **SFT)})[0]
    first = {(row.id, row.split) for row in answers(one)}
    Dataset.from_list([{**row, "note": None} for row in rows[::-1]]).to_parquet(str(room.folder / "other.parquet"))
    other = {"path": str(room.folder / "other.parquet"), "split": "train", **SFT}
    assert {(row.id, row.split) for row in answers(held(room, sft={"datasets": [other]})[0])} == first


def test_the_last_answer_is_scored_and_tools_and_images_are_left_out(room: Room) -> None:
    talks = [
        {"messages": [*chat(f"name {index}", "yes")["messages"], *chat("again", f"no {index}")["messages"]]}
        for index in range(20)
    ]
    tool = {"messages": [turn("user", "call"), turn("assistant", "7")], "tools": [{"name": "f"}]}
    seen = {"messages": [turn("user", "look"), turn("assistant", "cat")], "images": ["cat.png"]}
    setup, summary = held(
        room, sft={"datasets": room.data("sft.jsonl", [*talks, tool, seen], **SFT)}, evaluation={"held_out": {"sft": 5}}
    )
    assert summary.branches["sft"].unfit == {"have tools": 1, "have images, sound or video": 1}
    decoded = [tokenizer(setup).decode(row.prompt) for row in answers(setup)]
    assert all("yes" in text and "again" in text for text in decoded), decoded
    assert {tokenizer(setup).decode(row.answer)[:3] for row in answers(setup)} == {"no "}
    assert {row["messages"][0]["content"] for row in rest(setup, "sft-l1")} > {"call", "look"}


def tokenizer(setup: Setup) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(setup.base)


def test_what_stands_beside_is_not_trained_on_held_out_prompts_either(room: Room) -> None:
    rows = chats(40)
    sft = {"datasets": room.data("sft.jsonl", rows, **SFT)}
    more = room.data("more.jsonl", [*rows, chat("new", "9")], **SFT)
    own = {"plugins": None, "paft_l1_lambda": None, "datasets": more}
    setup, _ = held(room, sft=sft, compare={"mine": {"config": "sft.yml", "overrides": own}})
    request = request_beside(setup, setup.branches["mine"])
    assert request is not None
    hold_out(request)
    assert request_beside(setup, setup.branches["sft"]) is None, "the twin shares its branch's rows"
    left = [row["messages"][0]["content"] for row in rest(setup, "mine")]
    assert len(left) == 41 - len(answers(setup))
    assert "new" in left


def test_rows_to_be_retained_are_those_that_no_branch_is_taught(room: Room) -> None:
    rows = chats(40)
    extra = [chat(f"say {index}", "ok") for index in range(10)]
    (room.folder / "kept.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows[:5], *extra]))
    setup, summary = held(
        room, sft={"datasets": room.data("sft.jsonl", rows, **SFT)}, evaluation={"retained": "kept.jsonl"}
    )
    counts = summary.branches["retained"]
    assert (counts.rows, counts.test, counts.validation, counts.shared) == (15, 8, 2, 5)
    assert {tokenizer(setup).decode(row.answer)[:2] for row in answers(setup, "retained")} == {"ok"}
    assert len(rest(setup, "sft-l1")) == 35


def test_labelled_answers_are_pairs_where_a_prompt_has_both(room: Room) -> None:
    both = [
        {"prompt": f"say {index}", "completion": text, "label": label}
        for index in range(20)
        for text, label in (("yes", True), ("no", False))
    ]
    alone = [{"prompt": f"sing {index}", "completion": "la", "label": True} for index in range(5)]
    data = room.data(
        "kto.jsonl",
        [*both, *alone],
        type={"field_prompt": "prompt", "field_completion": "completion", "field_label": "label"},
    )
    setup, summary = held(
        room,
        preference={"rl": "kto", "datasets": data, "remove_unused_columns": False},
        evaluation={"held_out": {"preference": 4}},
    )
    assert summary.branches["preference"].unfit == {"have no counterpart with the other label": 5}
    decode = tokenizer(setup).decode
    assert {(decode(row.chosen)[:3], decode(row.rejected)[:2]) for row in pairs(setup)} == {("yes", "no")}
    assert len(rest(setup, "kto")) == 45 - 2 * 5


def test_a_data_set_of_the_hub_is_read_where_it_is_cached(
    room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache_on_disk(tmp_path, monkeypatch, "org/chats", chats(60))
    setup, summary = held(room, sft={"datasets": [{"path": "org/chats", "split": "train", **SFT}]})
    assert summary.branches["sft"].rows == 60
    assert len(rest(setup, "sft-l1")) == 52
    (entry,) = trained_on_rest(setup, setup.branches["sft-l1"]).content["datasets"]
    assert Path(entry["path"]).is_file()


def cache_on_disk(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, rows: list[dict[str, Any]]) -> None:
    """Have `rows` in the hub's cache and in that of `datasets`, as after a download."""
    import datasets.config
    import huggingface_hub.constants

    owner, _, short = name.partition("/")
    (folder / f"{short}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    load_dataset("json", data_files=str(folder / f"{short}.jsonl"), split="train", cache_dir=str(folder / "made"))
    (made,) = (folder / "made" / "json").glob("default-*/*/*/dataset_info.json")
    home = folder / "datasets" / f"{owner}___{short}" / "default" / "0.0.0" / "0123456789abcdef"
    home.mkdir(parents=True)
    (home / "dataset_info.json").write_text(made.read_text())
    (home / f"{short}-train.arrow").write_bytes((made.parent / "json-train.arrow").read_bytes())
    snapshot = folder / "hub" / f"datasets--{owner}--{short}" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "datasets")
