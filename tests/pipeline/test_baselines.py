"""The baselines of a run: which arms each word makes, of which trainings, and what cannot be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from paft_plugin.errors import PaftError
from paft_plugin.pipeline.arms import Setup, open_setup
from paft_plugin.pipeline.baselines import linear_modules, own_modules
from paft_plugin.pipeline.plan import make_plan
from tests.pipeline.runs import configs_of, edit, write_run

LLAMA = {
    **dict.fromkeys([f"self_attn.{name}_proj" for name in "qkvo"], "attention"),
    **dict.fromkeys([f"mlp.{name}_proj" for name in ("gate", "up", "down")], "mlp"),
}


def kinds(setup: Setup) -> dict[str, str]:
    return {arm.name: arm.kind for arm in setup.arms if arm.kind not in ("base", "branch", "fused")}


def needs(setup: Setup) -> dict[str, tuple[str, ...]]:
    return {stage.name: stage.needs for stage in make_plan(setup).stages}


def problems(folder: Path, **keys: Any) -> list[str]:
    with pytest.raises(PaftError) as caught:
        open_setup(write_run(folder, **keys))
    return [problem.replace(f"{folder}/", "") for problem in caught.value.problems]


def test_a_word_makes_an_arm_and_none_is_made_unasked(tmp_path: Path) -> None:
    assert kinds(open_setup(write_run(tmp_path))) == {}
    setup = open_setup(write_run(tmp_path, compare=["disjoint", "sequential", {"orpo": "dpo.yml"}]))
    assert kinds(setup) == {"sequential": "sequential", "disjoint": "disjoint"}
    assert "orpo" in [arm.name for arm in setup.arms]
    setup = open_setup(write_run(tmp_path, compare={"disjoint": None, "sequential": True}))
    assert kinds(setup) == {"sequential": "sequential", "disjoint": "disjoint"}


def test_sequential_true_is_the_same_run_however_it_is_spelt(tmp_path: Path) -> None:
    spelt = [{"sequential": True}, {"compare": ["sequential"]}, {"sequential": ["sft", "preference"]}]
    plans = [make_plan(open_setup(write_run(tmp_path, **keys))) for keys in spelt]
    assert plans[0] == plans[1] == plans[2]
    stages = {stage.name: stage.needs for stage in plans[0].stages}
    assert stages["sequential"] == ("merge-sft-whole",)
    assert stages["merge-sequential"] == ("merge-sft-whole", "sequential")


def test_an_order_is_a_chain_of_trainings_with_merges_between(tmp_path: Path) -> None:
    setup = open_setup(write_run(tmp_path, sequential=[["preference", "sft"], ["sft", "preference"]]))
    assert kinds(setup) == {"sequential": "sequential", "sequential-preference-sft": "sequential"}
    stages, written = needs(setup), configs_of(setup)
    assert stages["merge-dpo-whole"] == ("dpo",)
    assert stages["sequential-preference-sft"] == ("merge-dpo-whole",)
    assert stages["merge-sequential-preference-sft"] == ("merge-dpo-whole", "sequential-preference-sft")
    last = written["sequential-preference-sft"]
    assert last["base_model"] == str(setup.run_dir / "models" / "dpo-whole")
    assert not any(key.startswith("paft_") or key == "plugins" for key in last), "without the penalty"


def test_an_order_names_the_penalised_training_by_its_arm(tmp_path: Path) -> None:
    setup = open_setup(
        write_run(tmp_path, sequential=[["sft-l1", "preference"], ["preference", "sft-l1"]], arms=["base"])
    )
    assert list(kinds(setup)) == ["sequential-sft-l1-preference", "sequential-preference-sft-l1"]
    assert needs(setup)["sequential-sft-l1-preference"] == ("merge-sft-l1-whole",)
    last = configs_of(setup)["sequential-preference-sft-l1"]
    assert last["paft_l1_lambda"] > 0
    assert last["base_model"] == str(setup.run_dir / "models" / "dpo-whole"), (
        "so the penalty is on what it adds to that"
    )


def test_an_order_cannot_bound_a_loss_by_that_of_a_training_from_another_start(tmp_path: Path) -> None:
    bounded = {"config": "sft.yml", "overrides": {"paft_l1_lambda": None, "paft_max_loss_increase": 0.02}}
    for order in (["preference", "sft-l1"], ["sft", "preference", "sft-l1"]):
        with pytest.raises(PaftError, match=r"sequential: sft-l1: its loss is bounded .* Name it first"):
            open_setup(write_run(tmp_path, sft=bounded, sequential=[order]))
    assert open_setup(write_run(tmp_path, sft=bounded, sequential=[["sft-l1", "preference"]])).of_kind("sequential")


def test_orders_of_three_share_what_they_begin_with(tmp_path: Path) -> None:
    file = write_run(tmp_path, sft=None, preference=None)
    branches = {
        "math": {"config": "sft.yml", "role": "sft"},
        "code": {"config": "sft.yml", "role": "sft", "overrides": {"plugins": None, "paft_l1_lambda": None}},
        "taste": {"config": "dpo.yml", "role": "preference"},
    }
    edit(file, branches=branches, sequential=[["code", "math"], ["code", "math", "taste"], ["taste", "code"]])
    setup = open_setup(file)
    assert list(kinds(setup)) == ["sequential-code-math", "sequential-code-math-taste", "sequential-taste-code"]
    stages = needs(setup)
    assert stages["sequential-code-math-taste"] == ("merge-sequential-code-math",)
    assert [branch.name for branch in setup.continued] == ["math", "taste", "code"]
    assert list(kinds(open_setup(file, sequential=True, arms=["base"]))) == ["sequential"]
    assert needs(open_setup(file, sequential=True, arms=["base"]))["sequential"] == ("merge-sequential-math-code",)


def test_the_rows_of_a_joint_training_are_no_input_once_they_are_written(tmp_path: Path) -> None:
    file = write_run(tmp_path, compare=["joint"])
    before = make_plan(open_setup(file))
    rows = open_setup(file).run_dir / "joint-rows" / "rows.jsonl"
    rows.parent.mkdir(parents=True)
    rows.write_text("{}\n")
    assert make_plan(open_setup(file)) == before, "or a run that was interrupted would not go on"


def test_an_order_may_name_what_stands_beside_the_branches(tmp_path: Path) -> None:
    hot = {"config": "dpo.yml", "overrides": {"learning_rate": 0.1}}
    file = write_run(tmp_path, compare={"hot": hot}, sequential=[["sft", "preference"], ["sft", "hot"]], arms=["base"])
    setup = open_setup(file)
    assert kinds(setup) == {"sequential": "sequential", "sequential-sft-hot": "sequential"}
    assert needs(setup)["sequential-sft-hot"][0] == "merge-sft-whole"
    assert configs_of(setup)["sequential-sft-hot"]["learning_rate"] == 0.1
    assert "hot" not in needs(setup), "alone it is another arm, which nobody asked for"


def test_disjoint_branches_train_modules_of_their_own_without_the_penalty(tmp_path: Path) -> None:
    setup = open_setup(write_run(tmp_path, compare=["disjoint"]))
    written = configs_of(setup)
    sft, preference = written["disjoint-sft"], written["disjoint-preference"]
    assert sorted(sft["lora_target_modules"]) == ["mlp.down_proj", "mlp.gate_proj", "mlp.up_proj"]
    assert sorted(preference["lora_target_modules"]) == [f"self_attn.{name}_proj" for name in "koqv"]
    for config in (sft, preference):
        assert "lora_target_linear" not in config
        assert not any(key.startswith("paft_") for key in config)
    stages = needs(setup)
    assert stages["fuse-disjoint"] == stages["inspect-disjoint"] == ("disjoint-sft", "disjoint-preference")
    command = next(stage.command for stage in make_plan(setup).stages if stage.name == "fuse-disjoint")
    assert command[command.index("--method") + 1] == "task_arithmetic"


def test_full_fine_tuning_unfreezes_its_own_parameters(tmp_path: Path) -> None:
    from axolotl.utils.freeze import LayerNamePattern

    full = {"adapter": None, "lora_target_linear": None, "lora_r": None}
    file = write_run(tmp_path, compare={"disjoint": {"preference": ["q_proj", "v_proj"]}})
    edit(file, sft={"config": "sft.yml", "overrides": full}, preference={"config": "dpo.yml", "overrides": full})
    patterns = {name: config.get("unfrozen_parameters") for name, config in configs_of(open_setup(file)).items()}

    def trained(name: str, parameter: str) -> bool:
        return any(LayerNamePattern(pattern).match(parameter) for pattern in patterns[name] or ())

    layer = "model.layers.11."
    assert trained("disjoint-sft", f"{layer}mlp.up_proj.weight")
    assert trained("disjoint-preference", f"{layer}self_attn.q_proj.weight")
    for parameter in (f"{layer}self_attn.k_proj.weight", f"{layer}input_layernorm.weight", "model.embed_tokens.weight"):
        assert not trained("disjoint-sft", parameter)
        assert not trained("disjoint-preference", parameter)
    assert not trained("disjoint-preference", f"{layer}mlp.up_proj.weight")


def test_the_hub_is_asked_for_the_rows_of_a_joint_training(tmp_path: Path) -> None:
    file = write_run(tmp_path, compare=["joint"], arms=["base"], evaluation=False)
    edit(file, sft={"config": "sft.yml", "overrides": {"datasets": [{"path": "org/rows", "type": "chat_template"}]}})
    assert open_setup(file).remote == ["org/rows"]


def test_what_would_train_more_than_its_modules_is_left_out_and_said(tmp_path: Path) -> None:
    file = write_run(tmp_path, compare=["disjoint"])
    edit(file, sft={"config": "sft.yml", "overrides": {"lora_modules_to_save": ["embed_tokens"]}})
    branch = open_setup(file).branches["disjoint-sft"]
    assert "lora_modules_to_save" not in branch.content
    assert "lora_modules_to_save" in branch.notes[0]


@pytest.mark.parametrize(
    ("wanted", "meant"),
    [
        ({"a": ["mlp"], "b": ["attention"]}, {"a": 3, "b": 4}),
        ({"a": ["q_proj", "k_proj"], "b": ["self_attn.v_proj", "mlp"]}, {"a": 2, "b": 4}),
        ({"a": ["self_attn"], "b": ["up_proj"], "c": ["gate_proj"]}, {"a": 4, "b": 1, "c": 1}),
    ],
)
def test_modules_are_named_by_group_or_by_name(wanted: Mapping[str, list[str]], meant: Mapping[str, int]) -> None:
    assert {branch: len(modules) for branch, modules in own_modules(wanted, LLAMA).items()} == meant


@pytest.mark.parametrize(
    ("modules", "group"),
    [("transformer.h.0.attn.c_attn", "attention"), ("model.decoder.layers.0.fc1", "mlp")],
)
def test_modules_of_other_architectures_have_their_group(tmp_path: Path, modules: str, group: str) -> None:
    import torch
    from safetensors.torch import save_file

    embedding = {"model.embed_tokens.weight": torch.zeros(2, 2)}
    norm = {"model.layers.0.post_attention_layernorm.weight": torch.zeros(2)}
    save_file({f"{modules}.weight": torch.zeros(2, 2), **embedding, **norm}, tmp_path / "model.safetensors")
    assert list(linear_modules(tmp_path).values()) == [group]


def test_alpha_is_one_arm_with_the_penalty_and_one_without(tmp_path: Path) -> None:
    evaluation = {"held_out": {"sft": 8}}
    file = write_run(tmp_path, fusion={"methods": ["ties", "alpha"]}, arms=["p*-alpha"], evaluation=evaluation)
    setup = open_setup(file)
    assert {arm.name: (arm.recipe, arm.twin, arm.branches) for arm in setup.arms} == {
        "parallel-alpha": ("alpha", None, ("sft", "dpo")),
        "paft-alpha": ("alpha", "parallel-alpha", ("sft-l1", "dpo")),
    }
    stages = {stage.name: stage for stage in make_plan(setup).stages}
    assert stages["alpha-paft-alpha"].needs == ("sft-l1", "dpo", "hold-out")
    assert stages["alpha-paft-alpha"].title == "score 11 points of paft-alpha on validation items"
    assert stages["fuse-paft-alpha"].needs == ("sft-l1", "dpo", "alpha-paft-alpha")
    assert str(setup.run_dir / "alpha" / "paft-alpha" / "recipe.yml") in stages["fuse-paft-alpha"].command
    edit(file, fusion={"methods": {"alpha": {"points": 5}}})
    titles = [stage.title for stage in make_plan(open_setup(file)).stages]
    assert "score 5 points of parallel-alpha on validation items" in titles


def test_alpha_goes_from_one_branch_to_one_other(tmp_path: Path) -> None:
    file = write_run(tmp_path, sft=None, preference=None, fusion={"methods": ["alpha"]})
    sft, preference = {"config": "sft.yml", "role": "sft"}, {"config": "dpo.yml", "role": "preference"}
    edit(file, branches={"math": sft, "code": sft, "taste": preference})
    with pytest.raises(
        PaftError, match=r"fusion\.methods\.alpha: goes from one SFT branch to one preference branch, and there"
    ):
        open_setup(file)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"compare": ["disjont"]}, "compare: disjont: no baseline, and nothing says how it is trained. Did you mean disjoint?"),
        ({"compare": ["alpha"]}, "compare: alpha: is a way to fuse. Name it under `fusion: {methods: [alpha]}`."),
        ({"fusion": {"methods": {"alpha": {"points": 1}}}}, "fusion.alpha.points: Input should be greater than or equal to 2"),
        ({"fusion": {"methods": ["alpha"]}, "evaluation": False}, "fusion.methods.alpha: is chosen by scores, and `evaluation"),
        ({"compare": ["joint"], "sft": "base"}, "compare.joint: needs the axolotl config of sft, which is given as `trained:`"),
        ({"compare": {"joint": {"sft_weight": 0}}}, "compare.joint.sft_weight: Input should be greater than 0"),
        ({"compare": ["disjoint", "disjoint"]}, "disjoint is there twice"),
        ({"compare": {"disjoint": {"sftt": "mlp"}}}, "compare.disjoint.sftt: no such branch. Did you mean sft?"),
        ({"compare": {"disjoint": {"sft": "mpl"}}}, "compare.disjoint.sft: mpl: no such module. Did you mean mlp?"),
        ({"compare": {"disjoint": {"sft": "q_proj"}}}, "compare.disjoint.preference: self_attn.q_proj: sft would train"),
        ({"compare": ["disjoint"], "preference": "base"}, "compare.disjoint: needs the axolotl config of preference"),
        ({"sequential": [["preference", "stf"]]}, "sequential: [preference, stf]: stf: no such branch. Did you mean sft?"),
        ({"sequential": [["sft"]]}, "sequential: [sft]: name two branches or more, each once."),
        ({"sequential": ["sft", "sft"]}, "sequential: [sft, sft]: name two branches or more, each once."),
        ({"sequential": ["sft", "preference"], "preference": "base"}, "preference: is given as `trained:`, and only the first"),
        ({"sequential": ["preference", "sft"], "sft": "base"}, "sft: was trained with the penalty elsewhere"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_at_once(tmp_path: Path, keys: dict[str, Any], said: str) -> None:
    assert any(said in problem for problem in problems(tmp_path, **keys)), problems(tmp_path, **keys)


def test_an_order_may_begin_with_what_is_trained_already(tmp_path: Path) -> None:
    setup = open_setup(write_run(tmp_path, sequential=["preference", "sft"], preference="base"))
    assert needs(setup)["sequential-preference-sft"] == ()
