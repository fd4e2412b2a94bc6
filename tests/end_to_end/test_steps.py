"""Every step of a real `axolotl train` run is the one that SGD written by hand takes on L + λ‖δ‖₁.

Step by step from the recorded state: over a whole run, a sign that another CPU's rounding flips near zero would grow.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from datasets import load_from_disk
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tests.end_to_end.replay import base_parameters, deltas_of, fill, load_saved, steps_of
from tests.end_to_end.runs import LORA, record
from tests.end_to_end.sweeps import STRENGTH, WITNESSED, train_all

pytestmark = pytest.mark.slow
RATE, STEPS = 0.5, 4
KINDS = {"lora": LORA, "full": {}}


@pytest.fixture(scope="module")
def runs(write_config: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every epoch is one step over all six rows, in three micro-batches, so their order does not matter."""
    settings = {"optimizer": "sgd", "learning_rate": RATE, "num_epochs": STEPS}
    config = write_config(tmp_path_factory.mktemp("steps"), "sgd", **settings, **WITNESSED)
    return train_all(config, KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_is_one_of_sgd_on_the_penalised_loss(kind: str, runs: dict[str, Path], base: Path) -> None:
    output = runs[kind]
    taken = [step.parameters for step in steps_of(output)]
    assert len(taken) == STEPS == record(output)["steps_penalised"]
    model = load_saved(base, output)
    trained = {name: parameter for name, parameter in model.named_parameters() if name in taken[0]}
    start = base_parameters(base, model, taken[0])
    batch = tokenised(output.parents[2] / "sgd-prepared")
    states = [*taken, {name: parameter.detach().clone() for name, parameter in trained.items()}]
    for before, after in pairwise(states):
        fill(trained, before)
        task = torch.autograd.grad(model(**batch).loss, list(trained.values()))
        norm = torch.stack([delta.abs().sum() for delta in deltas_of(model, start)]).sum()
        penalty = torch.autograd.grad(STRENGTH * norm, list(trained.values()))
        moves = {name: after[name].double() - before[name].double() for name in trained}
        for name, one, other in zip(trained, task, penalty, strict=True):
            expected = -RATE * (one + other).double()
            assert (moves[name] - expected).norm() <= 0.01 * expected.norm() + 1e-9, name
    # Of the last step: without its penalty, the check above would have failed.
    assert max((other.norm() / one.norm()).item() for one, other in zip(task, penalty, strict=True)) > 0.1


def tokenised(prepared: Path) -> dict[str, Tensor]:
    """All rows as axolotl tokenised them, in one batch, padded on the right."""
    (folder,) = (path.parent for path in prepared.glob("*/dataset_info.json"))
    data = load_from_disk(str(folder))
    padding = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    return {
        key: pad_sequence([torch.tensor(row) for row in data[key]], batch_first=True, padding_value=value)
        for key, value in padding.items()
    }
