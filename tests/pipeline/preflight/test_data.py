"""Data that cannot be read, or not as their type reads them: file, line and the way out are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from paft_plugin.errors import Findings
from paft_plugin.pipeline.preflight.data_files import FIRST, LAST, local_files, read_sample
from tests.pipeline.hub import FakeHub
from tests.pipeline.room import Room
from tests.pipeline.rows import ALPACA, CHAT, KTO, PAIR, QUESTION, SHAREGPT, WHOLE, YES, turn

Preflight = Callable[..., Findings]


WRONG = [
    ("sft", {"type": "chat_template"}, SHAREGPT, ["field_messages: conversations", "{role: from, content: value}"]),
    ("sft", {"type": "chat_template"}, ALPACA, ["Messages is null", "instruction, input, output", "type: alpaca"]),
    ("sft", {"type": "alpaca"}, CHAT, ["no 'instruction'", "type: chat_template"]),
    ("sft", {"type": "alpacca"}, ALPACA, ["alpacca", "type: alpaca"]),
    ("sft", {"type": "chat_template"}, {"messages": [QUESTION]}, ["no token of this row would be trained"]),
    ("sft", {"type": "chat_template", "roles_to_train": ["bot"]}, CHAT, ["no token of this row would be trained"]),
    ("sft", {}, CHAT, ["`type` is missing"]),
    ("dpo", {"type": "chat_template.default"}, PAIR, ["no 'messages'", "field_messages: prompt"]),
    ("dpo", {"type": "chatml.prompt_pairs"}, WHOLE, ["no 'prompt'", "chat_template.argilla_chat"]),
    ("dpo", {"type": "chatml.prompt_pairs"}, {**WHOLE, "prompt": "1 + 1?"}, ["as Python text, brackets and all"]),
    ("dpo", {"type": "chatml.no_such"}, PAIR, ["cannot use this type with rl: dpo", "chat_template.default"]),
    ("dpo", {"type": "chatml.prompt_pairs"}, {"prompt": "1 + 1?", "good": "2", "bad": "3"}, ["field_chosen"]),
    ("dpo", {"type": {"field_prompt": "ask"}}, PAIR, ["no 'ask'"]),
    ("simpo", {"type": "chat_template.default"}, PAIR, ["no 'messages'", "field_messages: prompt"]),
    ("orpo", {"type": "chat_template.argilla"}, PAIR, ["whole conversations"]),
    ("orpo", {"type": "chat_template.argilla"}, {**WHOLE, "messages": [QUESTION, YES]}, ["a column 'messages'"]),
    ("orpo", {"type": "chat_template.default"}, WHOLE, ["chat_template.argilla"]),
    ("kto", {"type": "chatml.ultra"}, PAIR, ["no 'completion'", "KTO wants"]),
    ("kto", {"type": "chatml.ultra"}, {**KTO, "label": 1}, ["label is 1"]),
    ("dpo", {"type": {}}, {**PAIR, "chosen": ""}, ["chosen comes out empty"]),
]


def branch(room: Room, rl: str, entry: dict[str, Any], rows: list[Any]) -> dict[str, Any]:
    """Arguments for `check` that give a branch these rows."""
    datasets = room.data("rows.jsonl", rows, **entry)
    if rl == "sft":
        return {"sft": {"datasets": datasets, **({"sequence_len": 256} if entry.get("type") == "alpaca" else {})}}
    if rl in ("dpo", "simpo", "kto"):
        datasets = [{key: value for key, value in datasets[0].items() if key != "ds_type"}]
    strategy = {"simpo": {"rl": "simpo", "rl_beta": 1.0}, "kto": {"rl": "kto", "rl_beta": 0.1}}
    keys = {**strategy.get(rl, {}), "datasets": datasets, "sequence_len": 256, "remove_unused_columns": False}
    return {"preference": keys, "rl": "orpo" if rl == "orpo" else "dpo"}


@pytest.mark.parametrize(("rl", "entry", "row", "words"), WRONG)
def test_wrong_shape(check: Preflight, room: Room, rl: str, entry: Any, row: Any, words: list[str]) -> None:
    problems = check(**branch(room, rl, entry, [row] * 3)).problems
    assert problems, "nothing was found"
    assert all("datasets[0]" in problem for problem in problems), problems
    for word in words:
        assert word in problems[0]
    if "`type`" not in problems[0] and "column" not in problems[0] and "this type with" not in problems[0]:
        assert "rows.jsonl, line 1" in problems[0]


RIGHT = [
    ("sft", {"type": "chat_template"}, CHAT),
    (
        "sft",
        {
            "type": "chat_template",
            "field_messages": "conversations",
            "message_property_mappings": {"role": "from", "content": "value"},
        },
        SHAREGPT,
    ),
    ("sft", {"type": "alpaca"}, ALPACA),
    ("sft", {"type": "completion"}, {"text": "1 + 1 = 2"}),
    ("dpo", {"type": "chat_template.default", "field_messages": "prompt"}, PAIR),
    ("dpo", {"type": "chat_template.argilla_chat"}, WHOLE),
    ("dpo", {"type": "chatml.prompt_pairs"}, PAIR),
    ("dpo", {"type": {"field_prompt": "prompt"}}, PAIR),
    ("simpo", {"type": "chat_template.default", "field_messages": "prompt"}, PAIR),
    ("orpo", {"type": "chat_template.argilla"}, WHOLE),
    ("kto", {"type": "chatml.ultra"}, KTO),
]


@pytest.mark.parametrize(("rl", "entry", "row"), RIGHT)
def test_right_shape(check: Preflight, room: Room, rl: str, entry: Any, row: Any) -> None:
    found = check(**branch(room, rl, entry, [row] * 3), **({} if rl == "sft" else {"sft": {"sequence_len": 256}}))
    assert found.problems == []


def test_a_split_that_a_file_has_not(check: Preflight, room: Room) -> None:
    entry = {"type": "chat_template", "split": "train_sft"}
    assert "a file has one split, train" in check(**branch(room, "sft", entry, [CHAT])).problems[0]
    assert check(**branch(room, "sft", {**entry, "split": "train[:10]"}, [CHAT])).problems == []


def test_data_for_evaluation_are_looked_into(check: Preflight, room: Room) -> None:
    tests = room.data("tests.jsonl", [CHAT, 1], type="chat_template")
    gone = {"path": "gone.jsonl", "type": "chat_template"}
    problems = check(sft={"test_datasets": [*tests, gone]}).problems
    assert len(problems) == 2
    assert any("test_datasets[0]" in problem and "tests.jsonl, line 2" in problem for problem in problems)
    assert any("test_datasets[1]: gone.jsonl: no such file" in problem for problem in problems)


def test_hub_data_when_offline(check: Preflight) -> None:
    found = check(sft={"datasets": [{"path": "org/data", "type": "chat_template"}]})
    assert found.problems == []
    assert "datasets[0]: org/data could not be checked: HF_HUB_OFFLINE is set" in found.warnings[0]


def test_gated_hub_data(check: Preflight, hub: FakeHub) -> None:
    hub.answers["/api/datasets/org/data/auth-check"] = (403, {"X-Error-Code": "GatedRepo"}, b"")
    problems = check(sft={"datasets": [{"path": "org/data", "type": "chat_template"}]}).problems
    assert len(problems) == 1
    assert "sft.yml: datasets[0]: The dataset org/data is gated" in problems[0]


def test_the_last_row_is_looked_at(check: Preflight, room: Room) -> None:
    rows = [CHAT] * (FIRST + LAST + 100) + [{"messages": []}]
    problem = check(**branch(room, "sft", {"type": "chat_template"}, rows)).problems[0]
    assert f"rows.jsonl, line {len(rows)}" in problem


def test_rows_that_do_not_fit(check: Preflight, room: Room) -> None:
    long = {"messages": [QUESTION, turn("assistant", "2 " * 400)]}
    entry = {"type": "chat_template"}
    assert "would drop them all. Raise sequence_len" in check(**branch(room, "sft", entry, [long] * 3)).problems[0]
    found = check(**branch(room, "sft", entry, [CHAT, long]))
    assert found.problems == []
    assert "1 of 2 rows looked at have more than sequence_len: 64 tokens" in found.warnings[0]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b"\n\n", "has no rows"),
        ("a.jsonl", b'{"a": 1}\n{"a": \n', "line 2: no valid JSON"),
        ("a.jsonl", b'{"a": "x"}\n{"a": "\\ud800"}\n', "line 2: half of a character"),
        ("a.jsonl", b'{"a": 1}\n[1]\n', "line 2: is no JSON object"),
        ("a.jsonl", b'{"a": "x"}\n{"a": ["x"]}\n', "line 2: a is a list, but text in"),
        ("a.jsonl", b'{"a": "\xff"}\n', "line 1: no valid JSON"),
        ("a.json", b"[1, 2]", "row 1: is no JSON object"),
        ("a.json", b'[{"a": 1}', "no valid JSON"),
        ("a.json", b"[]", "has no rows"),
        ("a.csv", b"a,b\n", "has no rows"),
        ("a.csv", b"a,b\n\xff,1\n", "no valid CSV"),
        ("a.parquet", b"PAR1 and no more", "no valid Parquet"),
        ("a.txt", b"\xff", "is not UTF-8"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    sample = read_sample({"path": str(file)}, [file])
    assert len(sample.problems) == 1, sample.problems
    assert str(file) in sample.problems[0]
    assert words in sample.problems[0]


def test_each_file_of_a_folder_is_of_its_own_kind(tmp_path: Path) -> None:
    folder = tmp_path / "ultrachat"
    folder.mkdir()
    Dataset.from_list([{"text": "a"}]).to_parquet(str(folder / "train-00000.parquet"))
    Dataset.from_list([{"text": "b"}]).to_csv(str(folder / "more.csv"), index=False)
    entry = {"path": str(folder)}
    sample = read_sample(entry, local_files(entry))
    assert sample.problems == []
    assert sorted(row.content["text"] for row in sample.rows) == ["a", "b"]


@pytest.mark.parametrize("count", [1, FIRST, FIRST + 1, FIRST + LAST, 300])
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "txt", "parquet"])
def test_every_kind_of_file_gives_its_ends(tmp_path: Path, kind: str, count: int) -> None:
    import pyarrow
    import pyarrow.parquet

    numbers = [str(number) for number in range(count)]
    rows = [{"text": number} for number in numbers]
    file = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=50)
    else:
        texts = {
            "jsonl": "".join(json.dumps(row) + "\n" for row in rows),
            "json": json.dumps(rows),
            "csv": "text\n" + "\n".join(numbers) + "\n",
            "txt": "\n".join(numbers) + "\n",
        }
        file.write_text(texts[kind])
    sample = read_sample({"path": str(file)}, [file])
    assert sample.problems == []
    read = [row.content["text"] for row in sample.rows]
    assert read[:FIRST] == numbers[:FIRST]
    assert read[-1] == numbers[-1]
    assert read == list(dict.fromkeys(read))
    assert sample.rows[-1].place.endswith(str(count + (kind == "csv")))
