"""Held-out rows at random, for the demo's tokenizer, and what transformers by itself makes of one row at a time, unpadded."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

from paft_plugin.evaluation.held_out_rows import AnswerRow, PairRow
from paft_plugin.evaluation.held_out_scores import HeldOut

END, LETTERS = 2, range(6, 16)


def random_rows(seed: int = 0, count: int = 9) -> HeldOut:
    """Rows with prompts and answers of one to some tokens; the first of each kind is as short as can be."""
    rng = random.Random(seed)

    def tokens(most: int) -> tuple[int, ...]:
        return tuple(rng.choice(LETTERS) for _ in range(rng.randint(1, most)))

    def named(kind: str, row: int) -> dict[str, Any]:
        return {
            "id": f"{kind}{row}",
            "split": "test",
            "source": "data.jsonl",
            "prompt": (1,) if row == 0 else (1, *tokens(20)),
        }

    answers = [AnswerRow(**named("a", row), answer=(END,) if row == 0 else (*tokens(9), END)) for row in range(count)]
    pairs = [
        PairRow(**named("p", row), chosen=(*tokens(12), END), rejected=(7,) if row == 0 else (*tokens(12), END))
        for row in range(count)
    ]
    return HeldOut({"sft": answers}, {"dpo": pairs})


def log_probabilities(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
    """(tokens of the answer, vocabulary)."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
    return logits.float().log_softmax(-1)


def likelihood(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """log p(answer | prompt)."""
    found = log_probabilities(model, prompt, answer)
    return float(found[range(len(answer)), list(answer)].double().sum())


def divergence(base: Any, model: Any, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """KL(base ‖ model), mean per token."""
    log_q, log_p = (log_probabilities(each, prompt, answer) for each in (base, model))
    return float(torch.nn.functional.kl_div(log_p, log_q, log_target=True, reduction="none").sum(-1).mean())


def greedy(model: Any, prompt: Sequence[int], most: int) -> tuple[int, ...]:
    """The likeliest token each time, every time from the start."""
    said: list[int] = []
    while len(said) < most and END not in said:
        with torch.no_grad():
            said.append(int(model(input_ids=torch.tensor([[*prompt, *said]])).logits[0, -1].argmax()))
    return tuple(said)
