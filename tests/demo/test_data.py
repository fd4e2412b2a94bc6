"""The demo's data: seeded, split without leaks, in the styles stated, and read by axolotl's own strategies as they should be."""

from __future__ import annotations

import json
import random
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

MEASURES = ("skill", "mix", "words", "untouched", "style")
TRAINED = ("sft", "mix", "preference")
SCORED = {split: tuple(f"{split}/{measure}" for measure in MEASURES) for split in ("validation", "test")}
FILES = (*TRAINED, *SCORED["validation"], *SCORED["test"])


def rows(directory: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def prompt_of(row: dict[str, Any]) -> str:
    asked = row.get("question") or row.get("messages")
    return asked[0]["content"] if asked else row["prompt"]


def content_of(prompt: str) -> str:
    """What a prompt asks, the same for `add 1+2` and `add 2+1`."""
    task, argument = prompt.split(" ")
    return f"add {'+'.join(sorted(argument.split('+')))}" if task == "add" else prompt


def solve(prompt: str) -> str:
    task, argument = prompt.split(" ")
    answers = {
        "copy": lambda: argument,
        "rev": lambda: argument[::-1],
        "sort": lambda: "".join(sorted(argument)),
        "twice": lambda: argument * 2,
        "next": lambda: argument.translate(str.maketrans("abcdefghij", "bcdefghija")),
        "sub": lambda: str(int(argument.split("-")[0]) - int(argument.split("-")[1])),
        "add": lambda: str(sum(map(int, argument.split("+")))),
        "mix": lambda: "".join(one + other for one, other in zip(*argument.split("+"), strict=True)),
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
    assert rows(tmp_path, "mix") == rows(full, "mix")[:64]
    for file in FILES[2:]:
        assert rows(tmp_path, file) == rows(full, file)
    sizes = {"sft": 12_800, "mix": 12_800, "preference": 4_800}
    assert {file: len(rows(full, file)) for file in FILES} == dict.fromkeys(FILES, 200) | sizes


def test_nothing_scored_was_trained_on(full: Path) -> None:
    trained, validation, test = (
        {content_of(prompt_of(row)) for file in files for row in rows(full, file)}
        for files in (TRAINED, *SCORED.values())
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
        "mix": ["mix"],
        "words": ["copy", "reverse", "sort", "twice"],
        "untouched": ["next", "subtract"],
    }
    for split in ("validation", "test"):
        for measure, tasks in (asked | {"style": list(world.TASKS)}).items():
            items = rows(full, f"{split}/{measure}")
            counts = Counter(row["task"] for row in items)
            assert counts.keys() == set(tasks)
            assert max(counts.values()) - min(counts.values()) <= 1
            assert len({row["prompt"] for row in items}) == len(items)
            assert [row["task"] for row in items] != sorted(row["task"] for row in items) or len(tasks) == 1


@pytest.mark.parametrize(("file", "task"), [("sft", "add"), ("mix", "mix")])
def test_demonstrations_are_right_and_in_the_styles_of_the_base(full: Path, file: str, task: str) -> None:
    styles: Counter[str] = Counter()
    for row in rows(full, file):
        question, answer = row["messages"]
        assert (question["role"], answer["role"]) == ("user", "assistant")
        styles[style_of(answer["content"], solve(question["content"]))] += 1
        assert question["content"].startswith(f"{task} ")
    total = sum(styles.values())
    assert {style: count / total for style, count in styles.items()} == pytest.approx(world.STYLE_MIX, abs=0.02)


def test_the_polite_one_of_two_right_answers_is_chosen(full: Path) -> None:
    rejected_styles: Counter[str] = Counter()
    for row in rows(full, "preference"):
        prompt, chosen, rejected = prompt_of(row), row["chosen"], row["rejected"]
        assert chosen[0] == rejected[0] == row["question"][0] == {"role": "user", "content": prompt}
        assert prompt.split()[0] in ("copy", "twice", "rev", "sort")
        assert style_of(chosen[1]["content"], solve(prompt)) == "polite"
        rejected_styles[style_of(rejected[1]["content"], solve(prompt))] += 1
    total = sum(rejected_styles.values())
    assert {s: n / total for s, n in rejected_styles.items()} == pytest.approx({"plain": 0.5, "rude": 0.5}, abs=0.1)


def test_scored_answers_are_right(full: Path) -> None:
    for file in (*SCORED["validation"], *SCORED["test"]):
        assert all(row["answer"] == solve(row["prompt"]) for row in rows(full, file))


@pytest.mark.parametrize("items", [0, 7, MOST_ITEMS + 1])
def test_too_many_or_too_few_items_are_refused(tmp_path: Path, items: int) -> None:
    with pytest.raises(PaftError, match=f"items={items}"):
        write_data(tmp_path, 0, items=items)
    assert not any(tmp_path.iterdir())


def test_every_split_has_the_most_items_that_may_be_asked_for() -> None:
    """Sums and words come in hundreds of thousands, subtractions do not."""
    asked = [world.Item("subtract", f"sub {a}-{b}", str(a - b), 3) for a in range(200) for b in range(a + 1)]
    splits = Counter(world.split_of(item) for item in asked)
    assert min(splits["validation"], splits["test"]) >= MOST_ITEMS / len(world.UNTOUCHED)


@pytest.mark.parametrize("task", world.TASKS)
def test_no_answer_is_longer_than_what_may_be_said(task: str) -> None:
    items = world.sample_distinct(random.Random(0), [task], "train", 300)
    tokenizer = build_tokenizer()
    assert (
        max(len(tokenizer(world.styled(item.answer, "polite") + "</s>").input_ids) for item in items)
        <= world.MOST_TOKENS
    )


@pytest.mark.parametrize("name", ["plain", "run [1]", "a 'b' \"c\"", "ü#%20*?", "$items: {x}", "back\\slash"])
def test_tasks_find_their_items_whatever_the_folder_is_called(tmp_path: Path, name: str) -> None:
    write_data(tmp_path / name, 0, sft_rows=1, preference_rows=1, items=8)
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
        write_data(tmp_path / "data", seed, sft_rows=1, preference_rows=1, items=8)
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
