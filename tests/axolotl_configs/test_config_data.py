"""Each shipped config maps rows of its data set to the right tokens, by axolotl's and TRL's own code."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.axolotl_configs.stand_ins import (
    CONFIGS,
    DIALOGUES,
    PAIRS,
    argilla_rows,
    turns,
    ultrachat_rows,
    ultrafeedback_rows,
    write_rows,
)

IGNORED = -100
LoadConfig = Callable[..., Any]


def named(pattern: str) -> list[Any]:
    return [pytest.param(path, id=f"{path.parent.name}/{path.stem}") for path in CONFIGS if path.match(pattern)]


def sft_rows(cfg: Any) -> tuple[Any, list[dict[str, Any]]]:
    """Tokenizer and tokenised rows, as `axolotl train` prepares them for SFT."""
    from axolotl.common.datasets import load_datasets
    from axolotl.loaders import load_tokenizer

    return load_tokenizer(cfg), load_datasets(cfg=cfg).train_dataset.to_list()


def dpo_rows(cfg: Any) -> tuple[Any, list[dict[str, Any]]]:
    """Tokenizer and rows with `prompt_ids`, `chosen_ids`, `rejected_ids`: axolotl makes texts, TRL's trainer their tokens."""
    from axolotl.common.datasets import load_preference_datasets
    from axolotl.core.trainers.dpo.trainer import AxolotlDPOTrainer
    from axolotl.loaders import load_tokenizer

    tokenizer, dataset = load_tokenizer(cfg), load_preference_datasets(cfg=cfg).train_dataset
    args = SimpleNamespace(dataset_num_proc=None, max_length=cfg.sequence_len, truncation_mode="keep_start")
    trainer = SimpleNamespace(_tokenizer=tokenizer)
    return tokenizer, AxolotlDPOTrainer._prepare_dataset(trainer, dataset, tokenizer, args, "train").to_list()


def orpo_rows(cfg: Any) -> tuple[Any, list[dict[str, Any]]]:
    """Tokenizer and rows as TRL's ORPO trainer makes them of axolotl's text, brought to the names of `dpo_rows`."""
    from axolotl.common.datasets import load_preference_datasets
    from axolotl.core.trainers import AxolotlORPOTrainer
    from axolotl.loaders import load_tokenizer

    tokenizer, dataset = load_tokenizer(cfg), load_preference_datasets(cfg=cfg).train_dataset
    trainer = SimpleNamespace(processing_class=tokenizer, is_encoder_decoder=False, max_length=cfg.sequence_len)
    trainer.build_tokenized_answer = partial(AxolotlORPOTrainer.build_tokenized_answer, trainer)
    rows = []
    for text in dataset:
        row = AxolotlORPOTrainer.tokenize_row(trainer, text)
        prompt = len(row["prompt_input_ids"])
        for side in ("chosen", "rejected"):
            assert row[f"{side}_labels"] == [IGNORED] * prompt + row[f"{side}_input_ids"][prompt:]
        rows.append(
            {
                "prompt_ids": row["prompt_input_ids"],
                "chosen_ids": row["chosen_input_ids"][prompt:],
                "rejected_ids": row["rejected_input_ids"][prompt:],
            }
        )
    return tokenizer, rows


def trained_texts(tokenizer: Any, row: dict[str, Any]) -> list[str]:
    """Each unbroken run of tokens that bear a loss, as text."""
    runs = groupby(zip(row["input_ids"], row["labels"], strict=True), key=lambda pair: pair[1] != IGNORED)
    return [tokenizer.decode([label for _, label in run]) for trained, run in runs if trained]


def assert_pairs(tokenizer: Any, rows: list[dict[str, Any]]) -> None:
    """Every prompt is the SFT branch's prompt and holds no answer; every answer is whole and ends once."""

    def prompt_ids(prompt: str) -> list[int]:
        return tokenizer.apply_chat_template(turns(prompt), add_generation_prompt=True, return_dict=False)

    wanted = [(prompt_ids(prompt), chosen, rejected) for prompt, chosen, rejected in PAIRS]
    end = tokenizer.eos_token
    assert sorted(
        (row["prompt_ids"], tokenizer.decode(row["chosen_ids"]), tokenizer.decode(row["rejected_ids"])) for row in rows
    ) == sorted((ids, chosen + end, rejected + end) for ids, chosen, rejected in wanted)
    for row in rows:
        for side in ("chosen_ids", "rejected_ids"):
            ids = row["prompt_ids"] + row[side]
            assert ids.count(tokenizer.eos_token_id) == 1
            assert ids.count(tokenizer.bos_token_id) == (0 if tokenizer.bos_token is None else 1)


@pytest.mark.parametrize("path", named("sft-*.yml"))
def test_sft_trains_answers_and_nothing_else(path: Path, load_config: LoadConfig, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "ultrachat.jsonl", ultrachat_rows(DIALOGUES))
    tokenizer, rows = sft_rows(load_config(path, data))
    answers = [[turn["content"] + tokenizer.eos_token for turn in dialogue[1::2]] for dialogue in DIALOGUES]
    assert sorted(trained_texts(tokenizer, row) for row in rows) == sorted(answers)
    for row in rows:
        assert row["input_ids"].count(tokenizer.bos_token_id) == (0 if tokenizer.bos_token is None else 1)


@pytest.mark.parametrize("make_rows", [ultrafeedback_rows, argilla_rows])
@pytest.mark.parametrize("path", named("dpo-*.yml"))
def test_dpo_pairs(path: Path, make_rows: Callable[[], Any], load_config: LoadConfig, tmp_path: Path) -> None:
    assert_pairs(*dpo_rows(load_config(path, write_rows(tmp_path / "pairs.jsonl", make_rows()))))


@pytest.mark.parametrize("conversational", [False, True])
def test_dpo_pairs_do_not_depend_on_the_hash_seed(
    conversational: bool, load_config: LoadConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL looks at one arbitrary member of a set of columns, `messages` among them, to tell texts from conversations."""
    monkeypatch.setattr("trl.trainer.dpo_trainer.is_conversational", lambda _: conversational)
    path = next(path for path in CONFIGS if path.match("mistral-*/dpo-lora.yml"))
    assert_pairs(*dpo_rows(load_config(path, write_rows(tmp_path / "pairs.jsonl", ultrafeedback_rows()))))


@pytest.mark.parametrize("path", named("orpo-*.yml"))
def test_orpo_pairs(path: Path, load_config: LoadConfig, tmp_path: Path) -> None:
    assert_pairs(*orpo_rows(load_config(path, write_rows(tmp_path / "pairs.jsonl", argilla_rows()))))


@pytest.mark.parametrize("path", named("orpo-*.yml"))
def test_orpo_texts_cannot_be_taken_for_conversations(path: Path, load_config: LoadConfig, tmp_path: Path) -> None:
    """With a list left in any of these columns TRL's ORPO trainer stops, in the runs in which it happens to look at that one."""
    from axolotl.common.datasets import load_preference_datasets

    cfg = load_config(path, write_rows(tmp_path / "pairs.jsonl", argilla_rows()))
    for row in load_preference_datasets(cfg=cfg).train_dataset:
        columns = {"prompt", "chosen", "rejected", "completion", "messages"} & set(row)
        assert all(isinstance(row[column], str) for column in columns)


@pytest.mark.parametrize("base", sorted({path.parent for path in CONFIGS}), ids=lambda path: path.name)
def test_branches_see_the_same_tokens(base: Path, load_config: LoadConfig, tmp_path: Path) -> None:
    """One conversation, three roads: SFT's template, DPO's formats and ORPO's template give the same token ids."""
    conversations = [turns(prompt, chosen) for prompt, chosen, _ in PAIRS]
    chat = write_rows(tmp_path / "chat.jsonl", ultrachat_rows(conversations))
    feedback = write_rows(tmp_path / "feedback.jsonl", ultrafeedback_rows())
    argilla = write_rows(tmp_path / "argilla.jsonl", argilla_rows())
    _, sft = sft_rows(load_config(base / "sft-l1-lora.yml", chat))
    _, dpo = dpo_rows(load_config(base / "dpo-lora.yml", feedback))
    _, orpo = orpo_rows(load_config(base / "orpo-lora.yml", argilla))
    wanted = sorted(row["input_ids"] for row in sft)
    assert sorted(row["prompt_ids"] + row["chosen_ids"] for row in dpo) == wanted
    assert sorted(row["prompt_ids"] + row["chosen_ids"] for row in orpo) == wanted
