"""What a study runs: the text of a seed's `paft.yml`, settings that are the same in all seeds, and what each arm is."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import yaml

from paft_plugin.errors import PaftError
from paft_plugin.pipeline.arms import open_setup
from paft_plugin.study.config import read_configs
from paft_plugin.study.planning.plan import StudyPlan, plan_study
from paft_plugin.study.planning.tuning import FACTORS, points
from tests.study.room import Change

EVERYTHING = {
    "budget": 5,
    "ways": [
        "sequential",
        "sequential-reverse",
        "joint",
        "alpha",
        "disjoint",
        "task_arithmetic",
        "ties",
        "ram",
        "linear",
    ],
    "controls": [
        *("rescale_l2", "rescale_l1", "prune", "prune_rescale", "drop", "factors", "preference_l1", "disjoint"),
        *({"early_stop": {"steps": [5, 9]}}, {"l2": {"strengths": [0.1]}}, {"kl": {"factors": [0.5]}}),
    ],
    "curves": {
        "paft_l1_lambda": [1e-5, 1e-4, 1e-3],
        "paft_target_sparsity": [0.9],
        "paft_max_loss_increase": [0.02],
        "density": [0.1, 0.2],
    },
}


def plan(file: Path) -> StudyPlan:
    return plan_study(file, read_configs(file))


def test_the_paft_yml_of_a_seed_can_be_read_as_it_is(study: Change) -> None:
    """Golden text: what a person reads and edits."""
    run = plan(study(output_dir=".", description="Two lines.\nOf seed $seed.", curves=None)).runs[1]
    expected = (Path(__file__).parent / "paft.yml").read_text(encoding="utf-8")
    assert run.text.partition("\n")[2] == expected


def test_settings_are_the_same_in_all_seeds(study: Change) -> None:
    one, other = (yaml.safe_load(run.text) for run in plan(study(**EVERYTHING)).runs)
    assert one["fusion"]["fused"] == other["fusion"]["fused"]
    assert one["fusion"]["seed"] != other["fusion"]["seed"]


def test_points_are_always_the_same_and_more_of_them_begin_with_fewer() -> None:
    assert points(3) == points(8)[:3]
    assert points(8)[1][:3] == pytest.approx([0.3195, 0.1636, 0.6643], abs=1e-3)


def test_every_way_gets_the_budget_and_begins_with_its_default(study: Change) -> None:
    design = plan(study(**EVERYTHING)).design
    trials = Counter((arm.way, arm.form) for arm in design.arms if arm.group == "way")
    # Of `linear` there is nothing to tune but the strength.
    assert trials.pop(("linear", "dense")) == 1
    assert trials.pop(("linear", "l1")) == 3
    assert set(trials.values()) == {5}
    firsts = {(arm.way, arm.form): arm.name for arm in design.arms if arm.trial == 1}
    assert firsts["ties", "dense"] == "parallel-ties"
    assert firsts["ties", "l1"] == "paft-ties"
    assert firsts["sequential-reverse", "dense"] == "sequential-preference-sft"


@pytest.mark.parametrize("way", ["ties", "alpha", "sequential", "sequential-reverse", "joint"])
def test_the_two_forms_of_a_way_are_tried_with_the_same_settings(way: str, study: Change) -> None:
    arms = plan(study(**EVERYTHING)).design.arms
    settings = {
        form: [
            {name: value for name, value in arm.settings.items() if name != "paft_l1_lambda"}
            for arm in arms
            if (arm.way, arm.form, arm.group) == (way, form, "way")
        ]
        for form in ("dense", "l1")
    }
    assert settings["dense"] == settings["l1"]
    strengths = {arm.settings["paft_l1_lambda"] for arm in arms if (arm.way, arm.form, arm.group) == (way, "l1", "way")}
    assert len(strengths) > 1


def test_a_way_that_trains_does_so_with_the_penalty_in_its_other_form(study: Change) -> None:
    found = plan(study(**EVERYTHING))
    content = yaml.safe_load(found.runs[0].text)
    names = {(arm.way, arm.form, arm.trial): arm.name for arm in found.design.arms if arm.group == "way"}
    assert names["sequential", "l1", 1] == "sequential-sft-l1-preference"
    assert names["sequential-reverse", "l1", 1] == "sequential-preference-sft-l1"
    own = content["compare"]["joint-l1"]["joint"]["overrides"]
    assert own == {"plugins": ["paft_plugin.PAFTPlugin"], "paft_l1_lambda": 1e-4}, "the first trial is the config's own"
    for trial in range(1, 6):
        joint = content["compare"][names["joint", "l1", trial]]["joint"]["overrides"]
        assert joint["plugins"] == ["paft_plugin.PAFTPlugin"]
        assert joint["paft_l1_lambda"] > 0
    for trial in range(2, 6):
        on_top = names["sequential-reverse", "l1", trial].removeprefix("sequential-preference-")
        assert "plugins" not in content["compare"][on_top]["overrides"], "only the dense form takes the penalty away"
    orders = {"-".join(["sequential", *order]) for order in content["sequential"]} | {"sequential"}
    assert {name for (way, _, _), name in names.items() if way.startswith("sequential")} <= orders


def test_a_control_is_fused_by_every_method(study: Change) -> None:
    design = plan(study(**EVERYTHING)).design
    assert {arm.name for arm in design.named("control:early_stop")} == {"early-5", "early-9"}
    assert {arm.of for arm in design.named("control:early_stop/ties")} == {"early-5", "early-9"}
    controls = {arm.control for arm in design.arms if arm.control}
    for control in controls - {"disjoint"}:
        for method in ("task_arithmetic", "ties", "ram", "linear"):
            assert design.named(f"control:{control}/{method}")


def test_a_point_of_a_curve_that_is_there_already_is_not_made_again(study: Change) -> None:
    found = plan(study(**EVERYTHING))
    curves = {
        name: [(arm.x, arm.name) for arm in found.design.arms if arm.curve == name and arm.way is None]
        for name in ("paft_l1_lambda", "paft_target_sparsity", "paft_max_loss_increase")
    }
    assert sorted(curves["paft_l1_lambda"]) == [(0.0, "sft"), (1e-5, "l1-1e-05"), (1e-4, "sft-l1"), (1e-3, "l1-0.001")]
    assert curves["paft_target_sparsity"] == [(0.9, "target-0.9")]
    assert curves["paft_max_loss_increase"] == [(0.02, "bound-0.02")]
    compare = yaml.safe_load(found.runs[0].text)["compare"]
    assert "l1-0.0001" not in compare
    assert compare["target-0.9"]["overrides"]["paft_l1_lambda"] is None
    density = [arm.name for arm in found.design.arms if (arm.curve, arm.way, arm.form) == ("density", "ties", "l1")]
    assert density == ["l1-ties-density-0.1", "paft-ties"]  # 0.2 is TIES' own


def test_the_penalty_of_a_joint_training_is_of_the_config_s_own_kind(study: Change) -> None:
    kind = {"paft_l1_on": "factors", "paft_l1_mode": "proximal"}
    sft = yaml.safe_load(study().read_text(encoding="utf-8"))["sft"]
    sft = {**sft, "overrides": {**sft["overrides"], **kind}}
    joint = {"joint": {"overrides": {"plugins": ["axolotl.integrations.liger.LigerPlugin"]}}}
    found = plan(study(sft=sft, compare=joint, ways=["joint", "ties"], budget=1, controls=None, contrasts=None))
    own = yaml.safe_load(found.runs[0].text)["compare"]["joint-l1"]["joint"]["overrides"]
    plugins = ["axolotl.integrations.liger.LigerPlugin", "paft_plugin.PAFTPlugin"]
    assert own == {"plugins": plugins, **kind, "paft_l1_lambda": 1e-4}


def test_a_bound_on_the_loss_is_a_strength_and_needs_a_twin(study: Change) -> None:
    bound = {"paft_max_loss_increase": 0.02, "paft_target_sparsity": 0.9, "seed": "$seed"}
    bounded = {"config": "axolotl/sft.yml", "overrides": bound}
    curves = {"paft_max_loss_increase": [0.01, 0.02], "paft_target_sparsity": [0.5]}
    found = plan(study(sft=bounded, ways=["ties", "sequential"], controls=None, contrasts=None, curves=curves))
    compare = yaml.safe_load(found.runs[0].text)["compare"]
    assert set(compare) == {"target-0.5", "bound-0.01", *(name for name in compare if name.startswith("dpo-lr"))}
    changed = {key: value for key, value in compare["target-0.5"]["overrides"].items() if key.startswith("paft_")}
    assert changed == {"paft_max_loss_increase": None, "paft_target_sparsity": 0.5, "paft_l1_lambda": None}
    with pytest.raises(PaftError) as caught:
        plan(study(sft=bounded, ways=["joint", "sequential-reverse", "ties"], contrasts=None))
    assert [each.split(":")[-2].strip() for each in caught.value.problems] == ["joint", "sequential-reverse"]


def test_without_a_penalty_a_study_compares_dense_ways_alone(study: Change) -> None:
    dense = {"config": "axolotl/sft.yml", "overrides": {"plugins": None, "paft_l1_lambda": None, "seed": "$seed"}}
    ways = ["sequential", "sequential-reverse", "joint", "alpha", "disjoint", "task_arithmetic", "ties"]
    changes = {"ways": ways, "controls": ["disjoint"], "contrasts": None, "curves": {"density": [0.1, 0.2]}}
    with_penalty, without = (plan(study(**changes, **more)) for more in ({}, {"sft": dense}))
    expected = [arm for arm in with_penalty.runs[0].arms if arm.form != "l1"]
    assert list(without.runs[0].arms) == expected
    assert not [name for name in yaml.safe_load(without.runs[0].text)["arms"] if "l1" in name or "paft" in name]


def test_what_a_file_compares_beside_the_ways_is_in_the_study(study: Change) -> None:
    compare = {
        "joint": None,
        "disjoint": None,
        "sequential": [["preference", "sft"]],
        "heavy": {"joint": {"sft_weight": 4}},
        "small": {"control": "scale", "of": "sft", "factor": 0.5},
        "hot": {"config": "axolotl/dpo.yml", "overrides": {"learning_rate": 0.01}},
    }
    mine = {"branches": ["small", "dpo"], "method": "linear"}
    file = study(
        ways=["ties", "alpha"], controls=None, contrasts=None, compare=compare, fusion={"fused": {"mine": mine}}
    )
    found = plan(file)
    names = {"joint", "disjoint", "sequential-preference-sft", "heavy", "small", "hot", "mine"}
    assert names <= {arm.name for arm in found.design.arms}
    run = found.runs[0]
    run.file.parent.mkdir(parents=True)
    run.file.write_text(run.text, encoding="utf-8")
    assert names <= {arm.name for arm in open_setup(run.file).arms}


def test_learning_rates_of_the_second_training_go_around_the_config_s_own(study: Change) -> None:
    content = yaml.safe_load(plan(study(**EVERYTHING)).runs[0].text)
    rates = [content["compare"][f"dpo-lr{factor:g}"]["overrides"]["learning_rate"] for factor in FACTORS[:4]]
    assert rates == [6e-4 * factor for factor in FACTORS[:4]]
    assert content["compare"]["sft-lr0.5"]["overrides"]["plugins"] is None


def test_data_beside_the_study_are_found_from_a_seed_s_folder(study: Change, world: Path) -> None:
    sft = {"config": "axolotl/sft.yml", "overrides": {"seed": "$seed"}}
    run = plan(study(sft=sft)).runs[0]
    # The demo's config names data/sft.jsonl, which this world has not.
    assert yaml.safe_load(run.text)["sft"]["overrides"] == {"seed": 1}
    (world / "data" / "sft.jsonl").write_text("{}\n", encoding="utf-8")
    run = plan(study(sft=sft)).runs[0]
    (data,) = yaml.safe_load(run.text)["sft"]["overrides"]["datasets"]
    assert (run.file.parent / data["path"]).resolve() == world / "data" / "sft.jsonl"
    (world / "data" / "sft.jsonl").unlink()
