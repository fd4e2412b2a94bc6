"""What a `paft.yml` says itself: tasks that cannot be scored, and Ray within Ray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paft_plugin.demo.data import write_tasks
from paft_plugin.errors import Findings
from paft_plugin.pipeline.preflight.check import (
    check_apart,
    check_evaluation,
    check_launcher,
    check_recipes,
    check_start,
    different_trainings,
)
from tests.pipeline.room import Room


def test_tasks_that_cannot_be_scored_are_all_named(room: Room, demo: Path, tmp_path: Path) -> None:
    write_tasks(tmp_path / "tasks", demo / "data" / "test")
    sound = {"tasks": "tasks", "measures": {"paft_skill": {"name": "skill"}}}
    assert check_evaluation(room.setup(evaluation=sound)).problems == []
    assert check_evaluation(room.setup()).problems == []
    wrong = {"tasks": "tasks", "measures": {"paft_skil": {}, "paft_style": {"metric": "acc_norm"}}}
    (few,) = check_evaluation(room.setup(evaluation={**sound, "limit": 5})).warnings
    assert "has 5 items, and fewer than 6 show no difference" in few
    hiding = {"tasks": "tasks", "held_out": {"sft": 8}, "measures": {"paft_skill": {"name": "preference"}}}
    (hidden,) = check_evaluation(room.setup(evaluation=hiding)).warnings
    assert "preference is also what a measure of held-out rows is called, and takes its place" in hidden
    problems = check_evaluation(room.setup(evaluation=wrong)).problems
    assert len(problems) == 2
    assert "Did you mean paft_skill?" in problems[0]
    assert "evaluation.measures.paft_style" in problems[1]


def test_a_dense_twin_is_asked_about_only_where_it_is_no_copy(room: Room) -> None:
    def names(**paft: Any) -> list[str]:
        return [branch.name for branch in different_trainings(room.setup(**paft))]

    assert names(arms=["sft", "sft-l1"]) == ["sft-l1"]
    assert names(arms=["sft"]) == ["sft"], "alone it stands for both"
    assert names(arms=["sft", "sft-l1"], compare={"sft": "preference.yml"}) == ["sft-l1", "sft"], "a config of its own"


def test_settings_of_a_joint_training_are_looked_at_as_those_of_a_branch(check: Callable[..., Findings]) -> None:
    """It is a training like the others, and a misspelt key would make it another one without a word."""
    right = check(compare={"joint": {"overrides": {"learning_rate": 1e-4}}})
    assert right.problems == []
    wrong = check(compare={"joint": {"overrides": {"learning_rte": 1e-4, "num_epochs": "many"}}})
    assert [problem for problem in wrong.problems if "paft.yml: compare.joint: " in problem and "num_epochs" in problem]
    assert [said for said in (*wrong.problems, *wrong.warnings) if "learning_rte" in said]


def test_recipes_are_linted_before_there_are_branches(room: Room, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yml"
    text = (
        "merge_method: {}\nbase_model: $base\nmodels:\n  - model: $sft\n    parameters: {{weight: 1}}\ndtype: float32\n"
    )
    recipe.write_text(text.format("task_arithmetic"))
    setup = room.setup(fusion={"recipes": {"mine": str(recipe)}})
    assert check_recipes(setup).problems == []
    recipe.write_text(text.format("tise"))
    (problem,) = check_recipes(setup).problems
    assert f"{recipe}" in problem
    assert "no merge method 'tise'" in problem


def test_ray_within_ray_is_refused(room: Room) -> None:
    for executor, count in (("ray", 1), ("local", 0)):
        setup = room.setup(sft={"use_ray": True}, executor=executor)
        by_config, plain = setup.branches["sft-l1"], setup.branches["dpo"]
        by_option = replace(plain, spec=plain.spec.model_copy(update={"launcher_args": ["--use-ray"]}))
        for branch, expected in ((by_config, count), (by_option, count), (plain, 0)):
            problems = check_launcher(setup, branch).problems
            assert len(problems) == expected
            assert all("use_ray: true cannot go together" in problem for problem in problems)


@pytest.mark.parametrize(
    ("rl", "honoured"), [("dpo", False), ("ipo", False), ("kto", False), ("orpo", True), ("simpo", True)]
)
def test_a_branch_that_is_to_continue_an_adapter_is_told_what_axolotl_makes_of_it(
    room: Room, rl: str, honoured: bool
) -> None:
    setup = room.setup(preference={"rl": rl, "adapter": "lora", "lora_model_dir": "/some/adapter"})
    (warning,) = check_start(setup, setup.branches[rl]).warnings
    assert ("ignores it" not in warning) == honoured
    assert ("counts it twice" in warning) == honoured
    assert not check_start(setup, setup.branches["sft-l1"]).warnings


def test_the_sft_branch_that_is_continued_is_known_for_it(room: Room, tmp_path: Path) -> None:
    (tmp_path / "done").mkdir()
    continued = {"rl": "orpo", "adapter": "lora", "lora_model_dir": str(tmp_path / "done")}
    setup = room.setup(preference=continued)
    sft = setup.branches["sft-l1"]
    done = replace(sft, spec=sft.spec.model_copy(update={"trained": tmp_path / "done"}))
    setup = replace(setup, branches={**setup.branches, "sft-l1": done})
    assert (
        "That is the SFT branch, so the fusion counts it twice"
        in check_start(setup, setup.branches["orpo"]).warnings[0]
    )


def test_without_an_adapter_axolotl_ignores_it_and_beside_the_plugin_it_is_a_problem(room: Room) -> None:
    start = {"lora_model_dir": "/some/adapter"}
    whole = room.setup(preference={"rl": "orpo", "adapter": None, **start})
    assert "ignores it without an adapter" in check_start(whole, whole.branches["orpo"]).warnings[0]
    sparse = room.setup(sft={"adapter": "lora", **start})
    assert "does not start from δ = 0" in check_start(sparse, sparse.branches["sft-l1"]).problems[0]


def test_one_folder_is_no_two_branches(room: Room) -> None:
    done = {"trained": str(room.demo / "base"), "role": "sft"}
    branches = {"one": done, "other": done, "taste": {"config": "preference.yml", "role": "preference"}}
    setup = room.setup(sft={}, preference={}, branches=branches)
    (problem,) = check_apart(setup).problems
    assert problem.startswith("one and other are the same folder")
