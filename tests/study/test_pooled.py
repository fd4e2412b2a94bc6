"""Seeds of two studies with the same items, put together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from paft_plugin.study.scores import read_study
from studies import pooled

STUDIES = Path(__file__).parents[2] / "studies"
OTHERWISE_CALLED = {"dense-sum": "parallel-task_arithmetic", "dense-ram": "parallel-ram"}
"""Of SmolLM2's arms, what the first seed calls them."""


@pytest.mark.parametrize(("folder", "first_seed"), [("smollm2", "first_seed"), ("demo_world/second", ".")])
def test_all_seeds_are_the_first_and_the_later_ones_as_they_are(folder: str, first_seed: str) -> None:
    first, later, together = (read_study(STUDIES / folder / name) for name in (first_seed, "later_seeds", "all_seeds"))
    assert set(together.items) == {*first.items, *later.items}
    for seed, scores in together.items.items():
        source = first.items.get(seed) or later.items[seed]
        for measure, kept in scores.items():
            assert kept.items == source[measure].items == first.items[1][measure].items
            assert set(kept.arms) == {arm.name for arm in together.design.arms}
            for arm, values in kept.arms.items():
                assert (values == source[measure].arms[OTHERWISE_CALLED.get(arm, arm) if seed == 1 else arm]).all()


def test_seeds_that_were_scored_on_other_items_are_not_put_together() -> None:
    later = read_study(STUDIES / "smollm2" / "later_seeds")
    other = {name: replace(kept, items="others") for name, kept in later.items[2].items()}
    with pytest.raises(ValueError, match="skill was scored on other items"):
        pooled.cut(other, later, {"sft"})
