"""The demo's data: seeded, split without leaks, in the styles stated, and read by axolotl's own strategies as they should be."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from axolotl.prompt_strategies import load as load_sft
from axolotl.prompt_strategies.dpo import load as load_dpo
from axolotl.prompt_strategies.orpo import load as load_orpo
from axolotl.utils.dict import DictDefault

from paft_plugin.demo import world
from paft_plugin.demo.data import MOST_ITEMS, write_data, write_tasks
from paft_plugin.demo.pretrain import build_tokenizer
from paft_plugin.errors import PaftError

MEASURES = ("skill", "retained", "style", "preference")
FILES = ("sft", "preference", *(f"{split}/{measure}" for split in ("validation", "test") for measure in MEASURES))


def rows(directory: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def prompt_of(row: dict[str, Any]) -> str:
    asked = row.get("question") or row.get("messages")
    return asked[0]["content"] if asked else row["prompt"]


def content_of(prompt: str) -> str:
    """What a prompt asks, the same for `1+2` and `2+1`."""
    task, argument = prompt.split(" ")
    return f"{task} {'+'.join(sorted(argument.split('+')))}"


def solve(prompt: str) -> str:
    task, argument = prompt.split(" ")
    answers = {
        "copy": lambda: argument,
        "rev": lambda: argument[::-1],
        "sort": lambda: "".join(sorted(argument)),
        "twice": lambda: argument * 2,
        "add": lambda: str(sum(map(int, argument.split("+")))),
    }
    return answers[task]()


def style_of(text: str, answer: str) -> str:
    (style,) = [style for style in world.STYLES if text == world.styled(answer, style)]
    return style


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    write_data(directory, seed=0)
    return directory


def test_the_seed_decides_every_byte(tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        write_data(tmp_path / name, seed, sft_rows=50, preference_rows=50, items=20)
    for file in FILES:
        one, same, other = ((tmp_path / name / f"{file}.jsonl").read_bytes() for name in ("one", "same", "other"))
        assert one == same
        assert one != other


def test_sizes_do_not_depend_on_each_other(full: Path, tmp_path: Path) -> None:
    write_data(tmp_path, seed=0, sft_rows=64)
    assert rows(tmp_path, "sft") == rows(full, "sft")[:64]
    for file in FILES[1:]:
        assert rows(tmp_path, file) == rows(full, file)
    assert {file: len(rows(full, file)) for file in FILES} == dict.fromkeys(FILES, MOST_ITEMS) | {
        "sft": 12_800,
        "preference": 4_800,
    }


def test_nothing_scored_was_trained_on(full: Path) -> None:
    trained, validation, test = (
        {content_of(prompt_of(row)) for file in files for row in rows(full, file)}
        for files in (FILES[:2], FILES[2:6], FILES[6:])
    )
    assert trained
    assert validation
    assert test
    assert not trained & validation
    assert not trained & test
    assert not validation & test


def test_every_measure_asks_each_of_its_tasks_equally_often_and_nothing_twice(full: Path) -> None:
    asked = {
        "skill": ["add"],
        "retained": ["copy", "reverse", "sort", "twice"],
        "preference": ["copy", "reverse", "sort", "twice"],
    }
    for split in ("validation", "test"):
        for measure, tasks in (asked | {"style": list(world.TASKS)}).items():
            items = rows(full, f"{split}/{measure}")
            counts = Counter(row["task"] for row in items)
            assert counts.keys() == set(tasks)
            assert max(counts.values()) - min(counts.values()) <= 1
            assert len({row["prompt"] for row in items}) == len(items)
            assert [row["task"] for row in items] != sorted(row["task"] for row in items) or len(tasks) == 1


def test_demonstrations_are_right_and_in_the_styles_of_the_base(full: Path) -> None:
    styles: Counter[str] = Counter()
    for row in rows(full, "sft"):
        question, answer = row["messages"]
        assert (question["role"], answer["role"]) == ("user", "assistant")
        styles[style_of(answer["content"], solve(question["content"]))] += 1
        assert question["content"].startswith("add ")
    total = sum(styles.values())
    assert {style: count / total for style, count in styles.items()} == pytest.approx(world.STYLE_MIX, abs=0.02)


@pytest.mark.parametrize("file", ["preference", "validation/preference", "test/preference"])
def test_the_polite_one_of_two_right_answers_is_chosen(full: Path, file: str) -> None:
    rejected_styles: Counter[str] = Counter()
    for row in rows(full, file):
        prompt, chosen, rejected = prompt_of(row), row["chosen"], row["rejected"]
        if file == "preference":
            assert chosen[0] == rejected[0] == row["question"][0] == {"role": "user", "content": prompt}
            chosen, rejected = chosen[1]["content"], rejected[1]["content"]
        assert prompt.split()[0] in ("copy", "twice", "rev", "sort")
        assert style_of(chosen, solve(prompt)) == "polite"
        rejected_styles[style_of(rejected, solve(prompt))] += 1
    total = sum(rejected_styles.values())
    assert {s: n / total for s, n in rejected_styles.items()} == pytest.approx({"plain": 0.5, "rude": 0.5}, abs=0.1)


def test_scored_answers_are_right(full: Path) -> None:
    for file in FILES[2:]:
        assert all(row["answer"] == solve(row["prompt"]) for row in rows(full, file) if "answer" in row)


@pytest.mark.parametrize("items", [0, 4, MOST_ITEMS + 1])
def test_too_many_or_too_few_items_are_refused(tmp_path: Path, items: int) -> None:
    with pytest.raises(PaftError, match=f"items={items}"):
        write_data(tmp_path, 0, items=items)
    assert not any(tmp_path.iterdir())


def test_every_split_has_the_most_items_that_may_be_asked_for() -> None:
    sums = [world.Item("add", f"add {a}+{b}", str(a + b)) for a in range(50) for b in range(50)]
    splits = Counter(world.split_of(item) for item in sums)
    assert min(splits["validation"], splits["test"]) >= MOST_ITEMS


@pytest.mark.parametrize("name", ["plain", "run [1]", "a 'b' \"c\"", "ü#%20*?", "$items: {x}", "back\\slash"])
def test_tasks_find_their_items_whatever_the_folder_is_called(tmp_path: Path, name: str) -> None:
    write_data(tmp_path / name, 0, sft_rows=1, preference_rows=1, items=5)
    write_tasks(tmp_path / name / "tasks", tmp_path / name / "test")
    files = sorted((tmp_path / name / "tasks").iterdir())
    assert [file.name for file in files] == sorted(f"paft_{measure}.yaml" for measure in MEASURES)
    for file in files:
        task = yaml.safe_load(file.read_text(encoding="utf-8"))
        loaded = datasets.load_dataset(task["dataset_path"], **task["dataset_kwargs"])[task["test_split"]]
        assert list(loaded) == rows(tmp_path / name, f"test/{file.stem.removeprefix('paft_')}")


def test_rewritten_items_are_never_read_from_a_stale_cache(tmp_path: Path) -> None:
    write_tasks(tmp_path / "tasks", tmp_path / "data" / "test")
    task = yaml.safe_load((tmp_path / "tasks" / "paft_skill.yaml").read_text(encoding="utf-8"))
    for seed in (0, 1, 2):
        write_data(tmp_path / "data", seed, sft_rows=1, preference_rows=1, items=5)
        loaded = datasets.load_dataset("json", **task["dataset_kwargs"])["test"]
        assert list(loaded) == rows(tmp_path / "data", "test/skill")


def config(**dataset: str) -> DictDefault:
    return DictDefault(
        {"chat_template": "tokenizer_default", "train_on_inputs": False, "sequence_len": 64, "datasets": [dataset]}
    )


@pytest.mark.parametrize("algorithm", ["dpo", "orpo"])
def test_axolotl_reads_the_pairs_as_the_chat_template_writes_them(full: Path, algorithm: str) -> None:
    tokenizer = build_tokenizer()
    if algorithm == "dpo":
        transform, _ = load_dpo(
            "chat_template.default", config(type="chat_template.default", field_messages="question"), dataset_idx=0
        )
    else:
        loaded = load_orpo("chat_template.argilla", config(type="chat_template.argilla"), dataset_idx=0)
        transform = (
            loaded[0] if isinstance(loaded, tuple) else loaded
        )  # 0.21 gives options for `map` with it, as for DPO
    for row in rows(full, "preference")[:200]:
        read = transform(row, tokenizer=tokenizer)
        prompt = prompt_of(row)
        assert read["prompt"] == f"<s><|user|>{prompt}<|assistant|>"
        for side in ("chosen", "rejected"):
            text = read["prompt"] + read[side]
            assert read[side] == f"{row[side][1]['content']}</s>"
            assert text == tokenizer.apply_chat_template(row[side], tokenize=False)
            assert text.count("<s>") == text.count("</s>") == 1


def test_axolotl_trains_on_the_answers_of_the_demonstrations(full: Path) -> None:
    tokenizer = build_tokenizer()
    cfg = config(type="chat_template")
    strategy = load_sft("chat_template", tokenizer, cfg, DictDefault(cfg.datasets[0]))
    for row in rows(full, "sft")[:200]:
        read = strategy.tokenize_prompt(row)
        question, answer = (turn["content"] for turn in row["messages"])
        assert tokenizer.decode(read["input_ids"]) == f"<s><|user|>{question}<|assistant|>{answer}</s>"
        assert tokenizer.decode([label for label in read["labels"] if label != -100]) == f"{answer}</s>"
