"""The stage on real data sets: the tokens are those of a training, nothing is trained on and scored, nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset

from paft_plugin.evaluation.held_out_rows import AnswerRow, HeldOutSummary, PairRow, read_rows
from paft_plugin.pipeline.arms import Setup
from paft_plugin.pipeline.held_out.request import request_of, trained_on_rest
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
