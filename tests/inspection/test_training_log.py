"""How far a training is, read from real lines of real logs, whole or cut anywhere."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paft_plugin.inspection.training_log import Follower, Training, advance
from tests.inspection.training_lines import DPO, FIRST, LAST, SCORE, START, TRAIN, read_training


def test_a_sparse_sft_run() -> None:
    begun = read_training(TRAIN + START)
    assert (begun.step, begun.total, begun.remaining, begun.loss) == (1, 120, 64.0, None)
    first = read_training(TRAIN + START + FIRST)
    assert (first.step, first.total, first.remaining) == (10, 120, 14.0)
    assert (first.loss, first.strength, first.sparsity) == (0.3016, 1e-4, ("1e-5", 0.656))
    assert first.metrics["tokens/total"] == 14080
    last = read_training(TRAIN + START + FIRST + LAST)
    assert (last.step, last.total, last.loss, last.sparsity) == (120, 120, 0.1736, ("1e-5", 0.8852))
    assert last.metrics["train_loss"] == 0.2042


def test_a_dpo_run_has_no_penalty() -> None:
    training = read_training(TRAIN + DPO)
    assert (training.step, training.total, training.remaining) == (21, 80, 34.0)
    assert (training.loss, training.strength, training.sparsity) == (0.6931, None, None)
    assert training.metrics["logits/chosen"] == -0.7453


def test_what_is_no_training_says_nothing() -> None:
    assert read_training(SCORE) == Training()


def test_a_second_attempt_starts_over_and_an_evaluation_is_no_step() -> None:
    log = TRAIN + START + FIRST
    assert read_training(log + "\n" + TRAIN) == Training()
    resumed = START.replace("1/120", "60/120")
    assert read_training(log + "\n" + TRAIN + resumed).step == 60
    evaluated = read_training(
        log + "\r 50%|█████     | 3/6 [00:01<00:01,  2.00it/s]\r{'eval_loss': '0.5', 'epoch': '1'}\n"
    )
    assert (evaluated.step, evaluated.total, evaluated.loss, evaluated.metrics["eval_loss"]) == (10, 120, 0.3016, 0.5)


def test_long_times_and_numbers_that_are_none() -> None:
    begun = Training(begun=True)
    long = advance(begun, "  0%|          | 3/90000 [00:07<61:02:03,  2.44s/it]")
    assert long.remaining == 61 * 3600 + 123
    broken = advance(begun, "{'loss': 'nan', 'grad_norm': 'inf', 'learning_rate': '1e-05', 'epoch': '0.1'}")
    assert broken.loss is not None
    assert math.isnan(broken.loss), "a loss that is no number is news"
    assert broken.metrics.keys() == {"loss", "learning_rate", "epoch"}


@given(st.lists(st.integers(0, len((TRAIN + START + FIRST + LAST).encode())), max_size=8))
def test_a_log_read_in_any_pieces_ends_the_same(tmp_path_factory: pytest.TempPathFactory, cuts: list[int]) -> None:
    """Pieces may end inside a line, a bar or a character."""
    content = (TRAIN + START + FIRST + LAST).encode()
    log = tmp_path_factory.mktemp("log") / "train.log"
    follower = Follower(log)
    assert follower.update() == Training()
    done, steps = 0, [0]
    for cut in [*sorted(cuts), len(content)]:
        with log.open("ab") as file:
            file.write(content[done:cut])
        done = cut
        steps.append(follower.update().step)
    assert follower.update() == read_training(content.decode())
    assert steps == sorted(steps)
    log.write_text(TRAIN)
    assert follower.update() == Training(), "a log that began anew"
