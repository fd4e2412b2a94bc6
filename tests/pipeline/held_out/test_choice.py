"""Which rows are held out: whatever the order, few moves when rows are added, no prompt in any branch's training."""

from __future__ import annotations

import random

import pytest

from paft_plugin.pipeline.held_out.choice import Chosen, RowIdentity, choose, choose_all, normalised


def rows(count: int, name: str = "sft", same: int = 1) -> list[RowIdentity]:
    """`count` rows, of which each `same` have one prompt."""
    return [RowIdentity(f"{name}-prompt-{index // same}", f"{name}-{index}") for index in range(count)]


def contents(branch: list[RowIdentity], chosen: Chosen) -> dict[str, str]:
    return {branch[index].content: split for index, split in chosen.rows.items()}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is the capital of France?", "  what is the Capital\nof France"),
        ("“Ping”, she said!", '"ping" she said'),
        ("ﬁne…", "fine"),
    ],
)
def test_copies_of_a_prompt_are_one(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("2 + 3", "2 - 3"), ("1.5", "15"), ("f(x)", "fx"), ("(2+3)*4", "2+3*4"), ("a, b", "ab"), ("don't", "dont")],
)
def test_what_means_something_else_stays_apart(one: str, other: str) -> None:
    assert normalised(one) != normalised(other)


@pytest.mark.parametrize(
    ("count", "amount", "test", "validation"),
    [
        (5000, None, 200, 50),
        (400, None, 40, 10),
        (30, None, 3, 1),
        (400, 100, 100, 25),
        (400, 0.2, 80, 20),
        (400, 0, 0, 0),
        (100, 90, 40, 10),  # half of them stay for the training
    ],
)
def test_as_many_as_asked(count: int, amount: float | None, test: int, validation: int) -> None:
    chosen = choose({"sft": rows(count)}, {"sft": amount})["sft"]
    assert (chosen.count("test"), chosen.count("validation")) == (test, validation)


def test_the_order_of_the_data_does_not_matter() -> None:
    branch = rows(300)
    shuffled = random.Random(0).sample(branch, len(branch))
    one, other = (choose({"sft": each}, {})["sft"] for each in (branch, shuffled))
    assert contents(branch, one) == contents(shuffled, other)


def test_rows_that_are_added_move_few() -> None:
    branch = rows(1000)
    more = [*rows(10, "new"), *branch]
    before, after = (contents(each, choose({"sft": each}, {"sft": 80})["sft"]) for each in (branch, more))
    assert len(before.items() - after.items()) <= 4


def test_a_prompt_of_another_branch_or_row_is_not_held_out() -> None:
    sft, preference = rows(100), [*rows(50)[::-1], *rows(50, "preference")]
    twice = [*sft, RowIdentity(sft[99].prompt, "again")]
    chosen = choose({"sft": twice, "preference": preference}, {"sft": 20, "preference": 20})
    prompts = {twice[index].prompt for index in chosen["sft"].rows}
    assert prompts <= {row.prompt for row in sft[50:99]}
    assert (chosen["sft"].shared, chosen["preference"].shared) == (52, 50)
    assert (chosen["sft"].taken, chosen["preference"].taken) == (0, 0)


def test_where_all_prompts_are_shared_they_are_taken_out_of_both_branches_for_the_same() -> None:
    sft, preference = rows(100), [*rows(100), *rows(100)]
    chosen = choose({"sft": sft, "preference": preference}, {"sft": 20, "preference": 20})
    of_sft, of_preference = (
        {branch[index].prompt: split for index, split in found.rows.items()}
        for branch, found in zip((sft, preference), chosen.values(), strict=True)
    )
    assert of_sft == of_preference
    assert chosen["sft"].taken == 25


def test_several_rows_to_a_prompt_leave_half_for_the_training() -> None:
    branch = rows(100, same=4)
    chosen = choose({"preference": branch}, {"preference": 20})["preference"]
    assert len(chosen.rows) == 12, "4 rows each leave with them"
    assert chosen.count("validation") == 3
    assert len({branch[index].prompt for index in chosen.rows}) == 12


def test_what_cannot_be_scored_stays_in_training() -> None:
    branch = [
        *rows(20),
        *(RowIdentity(f"p{index}", f"c{index}", "have tools") for index in range(50)),
        RowIdentity(None, "x"),
    ]
    chosen = choose({"sft": branch}, {"sft": 20})["sft"]
    assert set(chosen.rows) == set(range(20))


def test_of_rows_that_no_branch_is_trained_on_all_are_for_scoring() -> None:
    branch = rows(50)
    chosen = choose_all(branch, {branch[0].prompt, None})
    assert set(chosen.rows) == set(range(1, 50))
    assert (chosen.count("validation"), chosen.shared) == (10, 1)
