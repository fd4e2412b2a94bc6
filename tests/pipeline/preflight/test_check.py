"""What a `paft.yml` says itself: tasks that cannot be scored, and Ray within Ray."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from paft_plugin.demo.data import write_tasks
from paft_plugin.pipeline.preflight.check import check_evaluation, check_launcher, different_trainings
from tests.pipeline.room import Room


def test_tasks_that_cannot_be_scored_are_all_named(room: Room, demo: Path, tmp_path: Path) -> None:
    write_tasks(tmp_path / "tasks", demo / "data" / "test")
    sound = {"tasks": "tasks", "measures": {"paft_skill": {"name": "skill"}}}
    assert check_evaluation(room.setup(evaluation=sound)).problems == []
    assert check_evaluation(room.setup()).problems == []
    wrong = {"tasks": "tasks", "measures": {"paft_skil": {}, "paft_style": {"metric": "acc_norm"}}}
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


def test_ray_within_ray_is_refused(room: Room) -> None:
    for executor, count in (("ray", 1), ("local", 0)):
        setup = room.setup(sft={"use_ray": True}, executor=executor)
        by_config, plain = setup.branches["sft-l1"], setup.branches["dpo"]
        by_option = replace(plain, spec=plain.spec.model_copy(update={"launcher_args": ["--use-ray"]}))
        for branch, expected in ((by_config, count), (by_option, count), (plain, 0)):
            problems = check_launcher(setup, branch).problems
            assert len(problems) == expected
            assert all("use_ray: true cannot go together" in problem for problem in problems)
