"""A preference training with the penalty: every step of a real `axolotl train` run is one on L + λ‖δ‖₁ + λ₂‖δ‖₂²."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.end_to_end.replay import base_parameters, deltas_of, fill, load_saved, steps_of, why_not_penalised
from tests.end_to_end.runs import LORA, record
from tests.end_to_end.sweeps import STRENGTH, WITNESSED, train_all

pytestmark = pytest.mark.slow
RATE, STEPS, BETA, DECAY = 2.0, 3, 0.5, 0.05
PAIRS = [{"prompt": f"sort: {n} 1 =>", "chosen": f" 1 {n}", "rejected": f" {n} 1"} for n in range(2, 8)]
SINGLE = [
    {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
    for pair in PAIRS[:3]
    for side in ("chosen", "rejected")
]
OTHERS: dict[str, dict[str, Any]] = {"ipo": {}, "orpo": {"orpo_alpha": 0.1}, "simpo": {"simpo_gamma": 0.5}, "kto": {}}
KINDS: dict[str, dict[str, Any]] = {
    "dpo": LORA,
    "dpo full": {},
    "dpo l2": {**LORA, "paft_l1_lambda": None, "paft_l2_lambda": DECAY},
}


@pytest.fixture(scope="module")
def runs(write_config: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every epoch is one step over all six rows, in three micro-batches, so their order does not matter."""
    folder = tmp_path_factory.mktemp("preferences")
    pairs, single = data_set(folder, "pairs", PAIRS), data_set(folder, "single", SINGLE)
    settings = {
        "rl": "dpo",
        "rl_beta": BETA,
        "optimizer": "sgd",
        "learning_rate": RATE,
        "num_epochs": STEPS,
        "remove_unused_columns": False,
    }
    config = write_config(folder, "sgd", **settings, datasets=pairs, **WITNESSED)
    changes = {kind: {**LORA, "rl": kind, **keys} for kind, keys in OTHERS.items()}
    changes["kto"]["datasets"] = single
    return train_all(config, {**KINDS, **changes})


def data_set(folder: Path, name: str, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = [key for key in rows[0] if key != "label"]
    formats = {f"{field}_format": f"{{{field}}}" for field in fields}
    return [
        {"path": str(path), "split": "train", "type": {**{f"field_{field}": field for field in rows[0]}, **formats}}
    ]


@pytest.mark.parametrize("kind", ["dpo", "dpo full", *OTHERS])
def test_the_optimizer_gets_the_gradient_of_the_penalised_loss(kind: str, runs: dict[str, Path], base: Path) -> None:
    assert why_not_penalised(base, runs[kind], STRENGTH, STEPS) == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_is_one_of_sgd_on_the_penalised_dpo_loss(kind: str, runs: dict[str, Path], base: Path) -> None:
    """Log-probabilities, the margin over the base model and δ by plain autograd in fp64."""
    taken = [step.parameters for step in steps_of(runs[kind])]
    assert len(taken) == STEPS == record(runs[kind])["steps_penalised"]
    model = load_saved(base, runs[kind])
    trained = {name: parameter for name, parameter in model.named_parameters() if name in taken[0]}
    start = base_parameters(base, model, taken[0])
    with torch.no_grad():
        reference = margins(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64), base)
    states = [*taken, {name: parameter.detach().clone() for name, parameter in trained.items()}]
    for before, after in pairwise(states):
        fill(trained, before)
        task = -nn.functional.logsigmoid(BETA * (margins(model, base) - reference)).mean()
        deltas = deltas_of(model, start)
        sizes = [delta.square().sum() if kind == "dpo l2" else delta.abs().sum() for delta in deltas]
        penalty = (DECAY if kind == "dpo l2" else STRENGTH) * torch.stack(sizes).sum()
        gradients = [torch.autograd.grad(loss, list(trained.values())) for loss in (task, penalty)]
        for name, one, other in zip(trained, *gradients, strict=True):
            expected = -RATE * (one + other)
            assert (after[name].double() - before[name].double() - expected).norm() <= 0.01 * expected.norm() + 1e-9, (
                name
            )
    # Of the last step: without its penalty, the check above would have failed.
    assert max((other.norm() / one.norm()).item() for one, other in zip(*gradients, strict=True)) > 0.05


def margins(model: nn.Module, base: Path) -> Tensor:
    """log p(chosen) − log p(rejected) of each pair, both with their end token."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    sides = (
        [log_probability(model, tokenizer, pair["prompt"], pair[side]) for pair in PAIRS]
        for side in ("chosen", "rejected")
    )
    chosen, rejected = (torch.stack(side) for side in sides)
    return chosen - rejected


def log_probability(model: nn.Module, tokenizer: Any, prompt: str, answer: str) -> Tensor:
    asked = tokenizer(prompt).input_ids
    ids = tokenizer(prompt + answer).input_ids
    if ids[-1] != tokenizer.eos_token_id:
        ids.append(tokenizer.eos_token_id)
    logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    return logits.gather(-1, torch.tensor(ids[1:])[:, None])[len(asked) - 1 :].sum()
