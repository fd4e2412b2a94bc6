"""Fusions in memory: arms of a run, a stage for each set of branches, and every mistake in them at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paft_plugin.errors import PaftError
from paft_plugin.pipeline.arms import open_setup
from paft_plugin.pipeline.plan import Plan, make_plan
from paft_plugin.search.fused import FusedRequest
from tests.pipeline.runs import write_run

FUSED: dict[str, dict[str, Any]] = {
    "ties-03": {"branches": ["sft", "dpo"], "method": "ties", "density": 0.3},
    "slow-dare": {"branches": ["slow", "dpo"], "method": "dare_ties", "seed": 9, "weight": {"slow": 0.5}},
    "back": {"branches": ["dpo", "sft"], "method": "dare_ties"},
}
EVALUATION = {"measures": {}, "batch_size": 64}


def plan_of(folder: Path, fused: dict[str, Any], **keys: Any) -> Plan:
    compare = {"slow": {"config": "sft.yml", "overrides": {"learning_rate": 1e-4}}}
    fusion = {"methods": ["ties"], "fused": fused}
    file = write_run(folder, **{"fusion": fusion, "evaluation": EVALUATION, "compare": compare, **keys})
    return make_plan(open_setup(file))


def test_arms_are_merged_in_memory_in_a_stage_for_each_set_of_branches(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, FUSED)
    stages = {stage.name: stage for stage in plan.stages}
    names = [name for name in stages if name.startswith("fuse-in-memory")]
    assert names == ["fuse-in-memory-dpo-sft", "fuse-in-memory-dpo-slow"]
    pair, other = (stages[name] for name in names)
    assert pair.needs == ("hold-out", "evaluate-base", "sft", "dpo")
    assert other.needs == ("hold-out", "evaluate-base", "slow", "dpo")
    assert [str(folder) for folder in pair.folders] == ["scores/ties-03", "scores/back"]
    asked = [FusedRequest.model_validate_json(plan.files[stage.inputs[0]]) for stage in (pair, other)]
    assert [one.branches for one in asked[0].fusions] == [("sft", "dpo"), ("dpo", "sft")]
    assert [one.seed for request in asked for one in request.fusions] == [42, 42, 9]
    assert asked[0].fusions[0].settings.density == 0.3
    assert asked[1].fusions[0].settings.weight == {"slow": 0.5}
    setup = open_setup(tmp_path / "paft.yml")
    (arm,) = (each for each in setup.arms if each.name == "ties-03")
    assert (arm.kind, arm.model, arm.recipe, arm.branches, arm.in_memory) == ("fused", "", "ties", ("sft", "dpo"), True)
    assert "sft" in [each.name for each in setup.arms]  # what it is made of is in the table
    assert not any(
        "ties-03" in word for stage in plan.stages if stage.name.startswith("inspect") for word in stage.command
    )
    assert not any(stage.name in ("fuse-ties-03", "evaluate-ties-03") for stage in plan.stages)


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    wrong = {
        "dpo": {"branches": ["sft", "dpo"], "method": "ties"},
        "paft-mine": {"branches": ["sft", "dpo"], "method": "ties"},
        "unknown": {"branches": ["sft", "dpoo"], "method": "ties"},
        "twice": {"branches": ["sft", "sft"], "method": "ties"},
        "untaken": {"branches": ["sft", "dpo"], "method": "ram", "density": 0.5},
        "other": {"branches": ["sft", "dpo"], "method": "ties", "weight": {"slow": 1}},
        "alone": {"branches": ["sft"], "method": "slerp"},
    }
    with pytest.raises(PaftError) as caught:
        plan_of(tmp_path, wrong)
    said = [problem.partition("fusion.fused.")[2] for problem in caught.value.problems]
    expected = [
        "dpo: an arm of the run is called so",
        "paft-mine: an arm of the run is called so",
        "unknown: branches: dpoo: no such branch. Did you mean dpo",
        "twice: branches: sft is there twice",
        "untaken: --density: ram ",
        "other: --weight slow=1.0: there is no branch slow",
        "alone: --method slerp: takes exactly 2 branches, not 1",
    ]
    assert len(said) == len(expected)
    assert all(one.startswith(start) for one, start in zip(said, expected, strict=True)), said


@pytest.mark.parametrize(
    ("fused", "said"),
    [
        (
            {"x": {"branches": ["sft", "dpo"], "method": "tis"}},
            "fusion.fused.x.method: no such method. Did you mean ties",
        ),
        ({"x": {"branches": ["sft"], "method": "ties", "densty": 1}}, "fusion.fused.x.densty"),
        ({"x/y": {"branches": ["sft"], "method": "ties"}}, "fused.x/y: use letters"),
        ({"x": {"method": "ties"}}, "fusion.fused.x.branches"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, fused: dict[str, Any], said: str) -> None:
    with pytest.raises(PaftError, match=said):
        plan_of(tmp_path, fused)


def test_without_scores_they_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PaftError, match="evaluation: false"):
        plan_of(tmp_path, FUSED, evaluation=False)
