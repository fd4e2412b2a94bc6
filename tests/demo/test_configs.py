"""What each size of the demo is: its `paft.yml` opens, and makes the arms that it is for."""

from __future__ import annotations

from pathlib import Path

import pytest

from paft_plugin.demo.configs import FULL_DEMOS, QUICK_DEMOS, Demo
from paft_plugin.demo.run import write_inputs
from paft_plugin.pipeline.arms import open_setup


@pytest.mark.parametrize(
    ("demo", "fused", "arms"),
    [
        (QUICK_DEMOS[2], ["sft", "preference"], ["base", "sft", "sft-l1", "dpo", "parallel-ties", "paft-ties"]),
        (
            QUICK_DEMOS[3],
            ["sums", "mix", "preference"],
            [
                *("base", "sums-l1", "mix-l1", "dpo", "paft-ties"),
                *("without-sums-ties", "without-mix-ties", "without-preference-ties"),
            ],
        ),
    ],
    ids=["two", "three"],
)
def test_the_quick_ones_make_these_arms(tmp_path: Path, demo: Demo, fused: list[str], arms: list[str]) -> None:
    write_inputs(demo, tmp_path)
    setup = open_setup(tmp_path / "paft.yml")
    assert list(setup.fused) == fused
    assert [arm.name for arm in setup.arms] == arms
    assert {name for name, branch in setup.branches.items() if branch.penalised} == {"sft-l1", "sums-l1", "mix-l1"} & {
        *setup.branches
    }
    assert setup.config.evaluation.held_out == dict.fromkeys(fused, demo.items)


@pytest.mark.parametrize("branches", [2, 3])
def test_the_full_one_makes_every_arm_of_the_quick_one_and_the_dense_twins(tmp_path: Path, branches: int) -> None:
    arms = []
    for name, demo in (("quick", QUICK_DEMOS[branches]), ("full", FULL_DEMOS[branches])):
        write_inputs(demo, tmp_path / name)
        arms.append({arm.name for arm in open_setup(tmp_path / name / "paft.yml").arms})
    quick, full = arms
    assert {arm for arm in quick if not arm.startswith("without-")} < full
    assert {arm.replace("paft-", "parallel-") for arm in full if arm.startswith("paft-")} < full
    assert {arm.removesuffix("-l1") for arm in full} <= full
