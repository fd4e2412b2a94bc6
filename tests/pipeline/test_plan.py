"""From a `paft.yml` to arms, configs, recipes and stages; nothing is run here."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml

from paft_plugin.demo.configs import FULL_DEMO
from paft_plugin.demo.run import write_inputs
from paft_plugin.errors import PaftError
from paft_plugin.evaluation.arms import read_run
from paft_plugin.pipeline.arms import Setup, open_setup, search_request
from paft_plugin.pipeline.plan import Plan, make_plan, readable
from paft_plugin.pipeline.run import why_run
from paft_plugin.runner.identity import identities
from paft_plugin.runner.markers import prepare_folder, write_marker
from paft_plugin.runner.stages import Stage, absolute, in_order
from tests.pipeline.runs import configs_of, edit, write_run


def arms_of(setup: Setup) -> list[str]:
    return [arm.name for arm in setup.arms]


def needed_of(setup: Setup) -> list[str]:
    return [branch.name for branch in setup.needed]


def by_name(setup: Setup) -> dict[str, Stage]:
    return {stage.name: stage for stage in make_plan(setup).stages}


def finish(setup: Setup) -> None:
    """Pretend that a run of `setup` went through."""
    plan = make_plan(setup)
    stages = in_order(plan.stages, setup.run_dir)
    plan.write_files()
    now = identities(stages, setup.run_dir)
    for stage in stages:
        prepare_folder(stage, setup.run_dir, now[stage.name].fingerprint)
        write_marker(setup.run_dir, stage.name, now[stage.name], 1.0)


def reasons(file: Path, arms: tuple[str, ...] = ()) -> dict[str, str]:
    setup = open_setup(file, arms, False)
    return why_run(setup, make_plan(setup))


def test_the_arms_of_a_run_and_those_that_one_asks_for(tmp_path: Path) -> None:
    file = write_run(tmp_path, fusion={"methods": ["ties", "linear"]}, compare={"orpo": "dpo.yml"})
    assert arms_of(open_setup(file, [], False)) == ["base", "sft-l1", "dpo", "orpo", "paft-ties", "paft-linear"]
    setup = open_setup(file, [], True)
    assert arms_of(setup) == [
        *("base", "sft", "sft-l1", "dpo", "orpo", "sequential", "paft-ties", "paft-linear"),
    ]
    assert needed_of(setup) == ["sft-l1", "dpo", "sft", "orpo"]
    setup = open_setup(file, ["parallel-ties"], False)
    assert arms_of(setup) == ["parallel-ties"]
    assert needed_of(setup) == ["dpo", "sft"]
    assert arms_of(open_setup(file, ["parallel-*", "base"], False)) == ["base", "parallel-ties", "parallel-linear"]
    with pytest.raises(PaftError, match=r"arm paft-tie: there is none\. Did you mean paft-ties"):
        open_setup(file, ["paft-tie"], False)


def test_an_sft_branch_without_a_penalty_is_a_dense_one(tmp_path: Path) -> None:
    file = write_run(tmp_path, fusion={"methods": ["ties"]}, compare=["joint"], sequential=True)
    edit(tmp_path / "sft.yml", plugins=None, paft_l1_lambda=None)
    setup = open_setup(file, [], False)
    assert arms_of(setup) == ["base", "sft", "dpo", "joint", "sequential", "parallel-ties"]
    assert not any(arm.penalised for arm in setup.arms)
    assert needed_of(setup) == ["sft", "dpo", "joint"]
    for arm in ("sft-l1", "paft-ties", "paft-*"):
        with pytest.raises(PaftError, match=f"arm {re.escape(arm)}: there is no penalty in the config of a branch"):
            open_setup(file, [arm], False)


@pytest.mark.parametrize(
    ("arms", "search", "searched"),
    [
        (["base", "parallel-ties"], None, ["sft", "dpo"]),  # as `init` writes it
        (["paft-ties"], None, ["sft-l1", "dpo"]),
        (["paft-ties", "parallel-ties"], {}, ["sft-l1", "dpo"]),
        (["paft-ties", "parallel-ties"], {"branches": ["sft", "dpo"]}, ["sft", "dpo"]),
    ],
)
def test_a_search_is_of_the_branches_that_the_run_fuses(
    tmp_path: Path, arms: list[str], search: dict | None, searched: list[str]
) -> None:
    file = write_run(tmp_path, arms=arms, **({} if search is None else {"search": search}))
    with pytest.raises(PaftError, match=f"the branch {searched[0]} is not trained yet"):
        search_request(file)
    folder = tmp_path / "out" / "branches"
    for name in searched:
        (folder / name).mkdir(parents=True)
    branches = search_request(file).branches
    assert [(branch.name, branch.path) for branch in branches] == [
        ("sft", folder / searched[0]),
        ("preference", folder / searched[1]),
    ]


def test_what_is_searched_are_branches_of_the_run_one_form_of_each(tmp_path: Path) -> None:
    file = write_run(tmp_path, search={"branches": ["sft", "sft-l1", "orpo"]})
    with pytest.raises(PaftError) as caught:
        search_request(file)
    assert [problem.partition("search.branches: ")[2] for problem in caught.value.problems] == [
        "orpo: There are sft-l1, dpo, sft.",
        "sft, sft-l1, orpo: two are of the same branch. Name one form of each.",
    ]


def test_the_configs_are_the_user_s_with_the_run_s_own_paths(tmp_path: Path) -> None:
    file = write_run(
        tmp_path, preference={"config": "dpo.yml", "overrides": {"learning_rate": 1e-5, "warmup_steps": None}}
    )
    edit(
        tmp_path / "sft.yml",
        output_dir="elsewhere",
        plugins=["axolotl.integrations.liger.LigerPlugin", "paft_plugin.PAFTPlugin"],
    )
    setup = open_setup(file, ["base", "sft", "sft-l1", "dpo", "sequential"], False)
    configs = configs_of(setup)
    assert set(configs) == {"sft", "sft-l1", "dpo", "sequential"}
    original = yaml.safe_load((tmp_path / "sft.yml").read_text())
    sparse, dense, dpo = configs["sft-l1"], configs["sft"], configs["dpo"]
    assert sparse["base_model"] == dpo["base_model"] == str(tmp_path / "base")
    assert sparse["output_dir"] == str(tmp_path / "out" / "branches" / "sft-l1")
    assert "output_dir" in setup.branches["sft-l1"].notes[0]
    edit(tmp_path / "dpo.yml", hub_model_id="me/dpo")
    pushed = open_setup(file, ["*"], True)
    assert not [name for name, content in configs_of(pushed).items() if "hub_model_id" in content]
    assert "hub_model_id is left out" in pushed.branches["dpo"].notes[-1]
    assert sparse["datasets"][0]["path"] == str(tmp_path / "data" / "sft.jsonl"), "a relative path in a config"
    assert sparse["auto_resume_from_checkpoints"]
    changed = {"base_model", "output_dir", "datasets", "dataset_prepared_path", "auto_resume_from_checkpoints"}
    assert {key: value for key, value in sparse.items() if key not in changed} == {
        key: value for key, value in original.items() if key not in changed
    }
    assert {key for key in sparse if sparse.get(key) != dense.get(key)} == {
        *("plugins", "paft_l1_lambda", "output_dir", "dataset_prepared_path"),
    }
    assert dense["plugins"] == ["axolotl.integrations.liger.LigerPlugin"]
    edit(tmp_path / "sft.yml", plugins=["paft_plugin.plugin.PAFTPlugin"])
    assert "plugins" not in open_setup(file, ["base", "sft"], False).branches["sft"].content
    assert dpo["learning_rate"] == 1e-5
    assert "warmup_steps" not in dpo
    assert configs["sequential"]["base_model"] == str(tmp_path / "out" / "models" / "sft-whole")
    assert {key for key in dpo if dpo[key] != configs["sequential"][key]} == {
        *("base_model", "output_dir", "dataset_prepared_path"),
    }


def test_every_stage_comes_after_what_it_needs_and_knows_what_it_reads(tmp_path: Path) -> None:
    setup = open_setup(write_run(tmp_path), ["*"], False)
    stages = by_name(setup)
    for stage in stages.values():
        # What a command names in the run directory is another stage's, and needed, or given.
        for word in stage.command:
            path = Path(word.partition("=")[2] or word)
            folder = absolute(setup.run_dir, stage.folder)
            if setup.run_dir not in path.parents or folder in (path, *path.parents):
                continue
            if path == folder.parent:  # the scores of all arms, of which it writes its own
                assert stage.name.startswith("evaluate-")
                continue
            owners = [
                other.name
                for other in stages.values()
                if absolute(setup.run_dir, other.folder) in (path, *path.parents)
            ]
            assert path in stage.inputs or set(owners) & set(stage.needs), (stage.name, word)
    assert stages["fuse-paft-ties"].needs == ("sft-l1", "dpo")
    assert stages["sequential"].needs == ("merge-sft-whole",)
    assert stages["sft-l1"].needs == stages["dpo"].needs == (), "the branches know nothing of each other"
    assert set(stages["report"].needs) == set(stages) - {"report"}
    in_order(list(stages.values()), setup.run_dir)


def test_the_demo_s_stages_are_few(tmp_path: Path) -> None:
    write_inputs(FULL_DEMO, tmp_path)
    setup = open_setup(tmp_path / "paft.yml", [], False)
    assert len(setup.arms) == 11
    stages = list(by_name(setup))
    assert len(stages) == 25
    # What makes an arm is one stage; the sequential baseline needs the dense branch as a model, and one itself.
    assert [name for name in stages if name.startswith(("fuse-", "merge-"))] == [
        *("merge-sft-whole", "merge-sequential"),
        *(
            f"fuse-{kind}-{method}"
            for kind in ("parallel", "paft")
            for method in ("ties", "dare_ties", "task_arithmetic")
        ),
    ]


def test_trained_branches_are_taken_as_they_are(tmp_path: Path) -> None:
    adapter = tmp_path / "trained + done"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    file = write_run(tmp_path, sft=str(adapter), preference={"trained": str(adapter)})
    setup = open_setup(file, [], False)
    stages = by_name(setup)
    assert arms_of(setup) == ["base", "sft-l1", "preference", "paft-ties"]
    assert not [name for name in stages if name in setup.branches]
    assert adapter in stages["fuse-paft-ties"].inputs
    assert stages["evaluate-adapters"].needs == ()
    assert adapter in stages["evaluate-adapters"].inputs, "another adapter there is scored anew"
    assert stages["evaluate-adapters"].command.count("--adapter") == 2, "both by one load of the base"
    assert stages["evaluate-adapters"].folders == (Path("scores/sft-l1"), Path("scores/preference"))
    assert all(stage.keeps for name, stage in stages.items() if name.startswith("evaluate-")), (
        "one arm more costs itself"
    )
    with pytest.raises(PaftError, match="needs the axolotl configs of the branches"):
        open_setup(file, ["sequential"], False)
    with pytest.raises(PaftError, match="needs the axolotl configs"):
        open_setup(file, ["parallel-ties"], False)


def test_a_recipe_of_the_user_s_own_is_filled(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yml"
    mine.write_text("base_model: $base\nmodels:\n  - model: $sft # 5 $$\n  - model: $preference\n")
    file = write_run(tmp_path, fusion={"methods": ["ties"], "recipes": {"mine": "mine.yml"}})
    setup = open_setup(file, ["paft-mine", "parallel-mine"], False)
    files = make_plan(setup).files
    text = files[tmp_path / "out" / "configs" / "recipes" / "paft-mine.yml"]
    assert f"base_model: {tmp_path / 'base'}\n" in text
    assert f"model: {tmp_path / 'out' / 'branches' / 'sft-l1'} # 5 $\n" in text
    assert "branches/sft\n" in files[tmp_path / "out" / "configs" / "recipes" / "parallel-mine.yml"].replace(
        " # 5 $", ""
    )
    fuse = by_name(setup)["fuse-paft-mine"]
    assert fuse.command[-5:-3] == ("--recipe", str(tmp_path / "out" / "configs" / "recipes" / "paft-mine.yml"))
    assert "--sft" not in fuse.command
    mine.write_text("base_model: $nonsense\n")
    with pytest.raises(PaftError, match=r"mine\.yml: a \$placeholder"):
        make_plan(setup)


def test_options_of_a_method_reach_the_command(tmp_path: Path) -> None:
    options = {"density_sft": 0.1, "weight_preference": 0.7, "normalize": False, "filter": ["mlp:density=0.3"]}
    fusion = {"methods": {"ties": options, "dare_linear": {"extras": {"rescale": False}}}, "seed": 3}
    stages = by_name(open_setup(write_run(tmp_path, fusion=fusion), [], False))
    command = " ".join(readable(stages["fuse-paft-ties"].command, tmp_path / "out"))
    for words in (
        "--density-sft 0.1",
        "--weight-preference 0.7",
        "--no-normalize",
        "--filter mlp:density=0.3",
        "--seed 3",
    ):
        assert words in command
    assert "--no-rescale" in stages["fuse-paft-dare_linear"].command


def test_launchers_stay_axolotl_s_own(tmp_path: Path) -> None:
    sft = {"config": "sft.yml", "devices": 4}
    dpo = {"config": "dpo.yml", "launcher": "torchrun", "devices": 2, "launcher_args": ["--nnodes=2"]}
    stages = by_name(open_setup(write_run(tmp_path, sft=sft, preference=dpo), [], False))
    assert stages["sft-l1"].command[-5:] == ("--launcher", "accelerate", "--", "--num_processes", "4")
    assert stages["dpo"].command[-4:] == ("--launcher", "torchrun", "--", "--nnodes=2")
    assert stages["sft-l1"].resources.devices == 4


def test_a_change_runs_what_depends_on_it_and_says_why(tmp_path: Path) -> None:
    file = write_run(tmp_path)
    finish(open_setup(file, [], False))
    assert reasons(file) == {}

    rows = tmp_path / "data" / "preference.jsonl"
    kept = rows.read_bytes()
    rows.write_bytes(kept + kept.splitlines(keepends=True)[0])
    assert reasons(file)["dpo"] == f"changed: {rows}"
    assert {"sft-l1", "evaluate-base"}.isdisjoint(reasons(file))
    assert reasons(file)["fuse-paft-ties"] == "after dpo"
    rows.write_bytes(kept)
    assert reasons(file) == {}

    edit(tmp_path / "sft.yml", learning_rate=1e-3)
    assert reasons(file)["sft-l1"] == "changed: configs/sft-l1.yml"
    assert {"dpo", "evaluate-base"}.isdisjoint(reasons(file))
    edit(tmp_path / "sft.yml", learning_rate=5e-4)
    assert reasons(file) == {}

    edit(file, fusion={"methods": {"ties": {"density": 0.3}}})
    assert set(reasons(file)) == {
        *("fuse-paft-ties", "inspect-fused", "evaluate-paft-ties", "report"),
    }
    edit(file, fusion={"methods": ["ties"]})
    edit(file, executor={"kind": "local", "workers": 1})
    assert reasons(file) == {}, "where it runs changes no result"

    item = tmp_path / "data" / "test" / "skill.jsonl"
    item.write_text(item.read_text().replace("1", "2"))
    assert {name for name in reasons(file) if not name.startswith("evaluate-")} == {"report"}


def test_a_file_that_a_config_names_is_an_input_of_all_that_it_decides(tmp_path: Path) -> None:
    template = tmp_path / "t.jinja"
    template.write_text("{{ messages }}")
    file = write_run(tmp_path, evaluation={"held_out": {"sft": 4, "preference": 4}})
    edit(tmp_path / "sft.yml", chat_template="jinja", chat_template_jinja="t.jinja")
    finish(open_setup(file))
    assert reasons(file) == {}
    template.write_text("{{ messages[1:] }}")
    assert {name for name, why in reasons(file).items() if why == f"changed: {template}"} == {"hold-out", "sft-l1"}


@pytest.mark.parametrize("is_adapter", [True, False])
def test_another_branch_from_elsewhere_is_trained_on_anew(tmp_path: Path, is_adapter: bool) -> None:
    math = tmp_path / "math"
    math.mkdir()
    (math / ("adapter_config.json" if is_adapter else "config.json")).write_text("{}")
    (math / "weights").write_text("one")
    branches = {"math": {"trained": "math", "role": "sft"}, "taste": {"config": "dpo.yml", "role": "preference"}}
    file = write_run(tmp_path, sft=None, preference=None, branches=branches, compare=["sequential"])
    finish(open_setup(file))
    assert reasons(file) == {}
    (math / "weights").write_text("two")
    first = "merge-math-whole" if is_adapter else "sequential"
    assert reasons(file)[first] == f"changed: {math}"
    assert {"merge-sequential", "evaluate-sequential"} <= reasons(file).keys()
    assert "taste" not in reasons(file)


def test_another_version_of_ours_runs_everything_again_and_is_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_run(tmp_path)
    setup = open_setup(file, [], False)
    finish(setup)
    monkeypatch.setattr("paft_plugin.pipeline.plan.VERSIONS", {"paft-plugin": "9.9.9"})
    assert reasons(file) == dict.fromkeys(by_name(setup), "changed: the version of paft-plugin")


def test_a_moved_run_is_up_to_date_and_so_is_one_with_another_arm_more(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there + now"
    finish(open_setup(write_run(here), [], False))
    assert {name for name in reasons(here / "paft.yml", ("*",)) if name in ("sft-l1", "dpo", "fuse-paft-ties")} == set()
    shutil.move(here / "out", tmp_path / "out")
    shutil.copytree(here, there)
    shutil.move(tmp_path / "out", there / "out")
    again = reasons(there / "paft.yml")
    assert again["sft-l1"].startswith("changed: configs/sft-l1.yml"), "its data lie elsewhere now, as the config says"


def test_run_json_tells_the_report_what_it_needs(tmp_path: Path) -> None:
    setup = open_setup(write_run(tmp_path), ["*"], False)
    plan = make_plan(setup)
    plan.write_files()
    run = read_run(setup.run_dir)
    assert run is not None
    assert run.arms == setup.arms
    assert {arm.name: arm.model for arm in run.arms} == {
        "base": str(tmp_path / "base"),
        "sft": "branches/sft",
        "sft-l1": "branches/sft-l1",
        "dpo": "branches/dpo",
        "sequential": "models/sequential",
        "parallel-ties": "models/parallel-ties",
        "paft-ties": "models/paft-ties",
    }
    assert run.skills == ("skill",)
    assert [stage.name for stage in run.stages] == list(by_name(setup))[:-1], "all but the report itself"


def test_an_arm_says_what_it_is(tmp_path: Path) -> None:
    setup = open_setup(write_run(tmp_path, compare={"orpo": "dpo.yml", "other": "sft.yml"}), ["*"], False)
    arms = {arm.name: arm for arm in setup.arms}
    assert (arms["base"].kind, arms["base"].branches, arms["base"].stage) == ("base", (), None)
    assert {name: arms[name].role for name in ("sft", "sft-l1", "dpo", "orpo", "other")} == {
        **dict.fromkeys(("sft", "sft-l1", "other"), "sft"),
        **dict.fromkeys(("dpo", "orpo"), "preference"),
    }
    assert [arm.name for arm in setup.arms if arm.penalised] == ["sft-l1", "other", "paft-ties"]
    assert {arm.name: arm.twin for arm in setup.arms if arm.twin} == {"sft-l1": "sft", "paft-ties": "parallel-ties"}
    fused, sequential = arms["paft-ties"], arms["sequential"]
    assert (fused.kind, fused.recipe, fused.branches) == ("fused", "ties", ("sft-l1", "dpo"))
    assert arms["parallel-ties"].branches == ("sft", "dpo")
    assert (sequential.kind, sequential.branches) == ("sequential", ("sft",))
    stages = by_name(setup)
    for arm in setup.arms:
        if arm.stage is not None:
            assert absolute(setup.run_dir, stages[arm.stage].folder) == setup.model(arm), "its stage fills its folder"
            scored = stages.get(f"evaluate-{arm.name}", stages["evaluate-adapters"])
            assert arm.stage in scored.needs
            assert Path("scores") / arm.name in scored.folders


def test_further_branches_are_inspected_and_elect_no_signs(tmp_path: Path) -> None:
    def electors(arms: list[str], **changes: object) -> list[str]:
        setup = open_setup(write_run(tmp_path / str(len(arms)), **changes), arms, False)
        command = by_name(setup)["inspect-branches"].command
        return [word for word in command if word.startswith("--fused")]

    assert electors(["base", "sft-l1", "dpo"]) == []
    assert electors(["sft", "sft-l1", "dpo", "other"], compare={"other": "sft.yml"}) == [
        "--fused=sft-l1",
        "--fused=dpo",
    ]
    assert electors(["sft", "dpo", "other", "base", "joint"], compare={"other": "sft.yml", "joint": None}) == [
        "--fused=sft",
        "--fused=dpo",
    ]


def test_a_preference_branch_may_be_penalised_too(tmp_path: Path) -> None:
    plain = configs_of(open_setup(write_run(tmp_path), ["*"], False))
    penalised = {"config": "dpo.yml", "overrides": {"plugins": ["paft_plugin.PAFTPlugin"], "paft_l1_lambda": 1e-4}}
    file = write_run(tmp_path, compare={"sparse": penalised})
    arms = {arm.name: arm for arm in open_setup(file, ["*"], False).arms}
    assert (arms["sparse"].role, arms["sparse"].penalised, arms["sparse"].twin) == ("preference", True, None)

    edit(file, preference=penalised, compare=["joint"])
    setup = open_setup(file, ["*"], False)
    arms, configs = {arm.name: arm for arm in setup.arms}, configs_of(setup)
    assert (arms["dpo-l1"].role, arms["dpo-l1"].penalised, arms["dpo-l1"].twin) == ("preference", True, "dpo")
    assert (arms["dpo"].role, arms["dpo"].penalised) == ("preference", False)
    assert arms["paft-ties"].branches == ("sft-l1", "dpo-l1")
    assert (arms["parallel-ties"].branches, arms["parallel-ties"].penalised) == (("sft", "dpo"), False)
    assert arms["sequential"].order == ("sft", "dpo")
    assert configs["dpo"] == plain["dpo"], "the twin is the training without its penalty"
    assert not [key for name in ("joint", "sequential") for key in configs[name] if key.startswith("paft_")]


def test_what_a_run_is_given_does_not_depend_on_how_far_it_has_come(tmp_path: Path) -> None:
    """A base in bf16: a run that was killed had its orders merged in fp32 before, and in bf16 after."""
    file = write_run(tmp_path, compare=["joint", "sequential", "disjoint"])
    config = tmp_path / "base" / "config.json"
    config.write_text(config.read_text().replace('"float32"', '"bfloat16"'))
    before = make_plan(setup := open_setup(file))
    recipes = [text for path, text in before.files.items() if path.parent.name == "recipes"]
    assert recipes
    assert all("out_dtype: bfloat16" in text for text in recipes)
    for stage in before.stages:
        (setup.run_dir / stage.folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(config, setup.run_dir / stage.folder / "config.json")
    after = make_plan(open_setup(file))
    assert dict(after.files) == dict(before.files)
    assert after.stages == before.stages


def test_a_bounded_branch_is_trained_after_its_dense_twin(tmp_path: Path) -> None:
    bounded = {"config": "sft.yml", "overrides": {"paft_l1_lambda": None, "paft_max_loss_increase": 0.01}}
    setup = open_setup(write_run(tmp_path, sft=bounded, compare={"other": bounded}), ["sft-l1", "other"], False)
    stages, configs = by_name(setup), configs_of(setup)
    assert {"sft", "sft-l1", "other"} <= set(stages), "the twin is trained though no arm is made of it"
    assert "sft" in stages["sft-l1"].needs
    assert "sft" in stages["other"].needs
    assert configs["sft-l1"]["paft_reference_loss"] == configs["sft"]["output_dir"]
    given = {"config": "sft.yml", "overrides": {**bounded["overrides"], "paft_reference_loss": 0.1}}
    setup = open_setup(write_run(tmp_path, sft=given), ["sft-l1"], False)
    assert "sft" not in by_name(setup)


def test_without_a_dense_twin_an_arm_names_none(tmp_path: Path) -> None:
    trained = tmp_path / "trained"
    trained.mkdir()
    setup = open_setup(write_run(tmp_path, sft=str(trained)), [], False)
    assert {arm.twin for arm in setup.arms} == {None}
    assert setup.arms[1].stage is None


THREE = {
    "sft": None,
    "preference": None,
    "branches": {
        "math": {"config": "sft.yml", "role": "sft"},
        "code": {"config": "dense.yml", "role": "sft"},
        "taste": {"config": "dpo.yml", "role": "preference"},
    },
}


def write_three(folder: Path, **keys: object) -> Path:
    """A run of three branches, of which `math` alone has a penalty."""
    file = write_run(folder, **{**THREE, **keys})
    content = yaml.safe_load((folder / "sft.yml").read_text())
    content = {key: value for key, value in content.items() if key != "plugins" and not key.startswith("paft_")}
    (folder / "dense.yml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


def test_the_short_form_and_two_branches_of_its_names_are_one_run(tmp_path: Path) -> None:
    file = write_run(tmp_path, sequential=True, fusion={"methods": {"ties": {"density_sft": 0.3}, "linear": {}}})
    plans = [make_plan(open_setup(file, ["*"]))]
    two = {"preference": {"config": "dpo.yml", "role": "preference"}, "sft": {"config": "sft.yml"}}
    for branches in (two, dict(reversed(two.items()))):
        edit(file, sft=None, preference=None, branches=branches)
        plans.append(make_plan(open_setup(file, ["*"])))
    first, *others = ([absolute_stages(plan), plan.files] for plan in plans)
    assert others[0] == others[1] == first


def absolute_stages(plan: Plan) -> dict[str, Stage]:
    return {stage.name: stage for stage in plan.stages}


def test_three_branches_have_their_arms(tmp_path: Path) -> None:
    file = write_three(tmp_path, fusion={"methods": ["ties", "linear"]})
    setup = open_setup(file)
    assert arms_of(setup) == [
        *("base", "math-l1", "code", "taste", "paft-ties", "paft-linear"),
        *("without-math-ties", "without-code-ties", "without-taste-ties"),
    ]
    arms = {arm.name: arm for arm in open_setup(file, ["*"]).arms}
    assert arms["paft-ties"].branches == ("math-l1", "code", "taste")
    assert arms["parallel-ties"].branches == ("math", "code", "taste")
    assert (arms["without-math-ties"].branches, arms["without-math-ties"].without) == (("code", "taste"), "math-l1")
    assert {name: arm.role for name, arm in arms.items() if arm.kind == "branch"} == {
        **{"math": "sft", "math-l1": "sft", "code": "sft", "taste": "preference"}
    }
    assert [name for name, arm in arms.items() if arm.penalised] == [
        *("math-l1", "paft-ties", "paft-linear", "without-code-ties", "without-taste-ties"),
        *("without-code-linear", "without-taste-linear"),
    ]
    command = by_name(setup)["fuse-paft-ties"].command
    assert f"math={setup.run_dir / 'branches' / 'math-l1'},role=sft" in command
    assert f"taste={setup.run_dir / 'branches' / 'taste'},role=preference" in command
    assert by_name(setup)["fuse-without-math-ties"].needs == ("code", "taste"), "a branch that fails does not end it"


def test_without_any_penalty_there_is_one_fusion_and_not_two(tmp_path: Path) -> None:
    dense = {"config": "dense.yml", "role": "sft"}
    branches = {"math": dense, "code": dense, "taste": {"config": "dpo.yml", "role": "preference"}}
    setup = open_setup(write_three(tmp_path, branches=branches))
    assert setup.of_kind("fused")[0].name == "parallel-ties"
    assert not [arm.name for arm in open_setup(setup.file, ["*"]).arms if arm.name.startswith("paft-")]


def test_a_recipe_of_the_user_s_own_names_branches_as_the_file_does(tmp_path: Path) -> None:
    (tmp_path / "mine.yml").write_text("models: [$my_math, $code, $taste, $base]", encoding="utf-8")
    branches = {"my-math" if name == "math" else name: spec for name, spec in THREE["branches"].items()}  # type: ignore[union-attr]
    setup = open_setup(
        write_three(tmp_path, branches=branches, fusion={"methods": [], "recipes": {"mine": "mine.yml"}})
    )
    (text,) = (text for path, text in make_plan(setup).files.items() if path.name == "paft-mine.yml")
    assert text.startswith(f"models: [{setup.run_dir / 'branches' / 'my-math-l1'}, ")


SFT, DPO = {"config": "sft.yml", "role": "sft"}, {"config": "dpo.yml", "role": "preference"}


@pytest.mark.parametrize(
    ("branches", "said"),
    [
        ({"math": SFT}, "branches: none has `role: preference`"),
        ({"math": SFT, "code": SFT}, "branches: none has `role: preference`"),
        ({"math": DPO, "code": DPO}, "branches: none has `role: sft`"),
        ({"math": SFT, "done": {"trained": "base"}}, "branches: done: role: missing"),
        ({"math": SFT, "t": {"config": "dpo.yml"}}, "branches: t: role: missing"),
        ({"math": SFT, "t": {"config": "sft.yml", "role": "preference"}}, "no preference training"),
        ({"math": SFT, "base": DPO}, "branches.base: an arm of the run is called so"),
        ({"math": SFT, "paft-t": DPO}, "branches.paft-t: an arm of the run is"),
        ({"math": SFT, "math-l1": DPO}, "branches.math-l1: an arm of the run is"),
        ({"math": SFT, "a b": DPO}, "branches: a b: use letters"),
        ({"math": SFT, "t": {"trained": "gone", "role": "sft"}}, "gone is no folder"),
    ],
)
def test_branches_that_cannot_be(tmp_path: Path, branches: dict[str, object], said: str) -> None:
    with pytest.raises(PaftError) as caught:
        open_setup(write_three(tmp_path, branches=branches))
    assert any(said in problem for problem in caught.value.problems), caught.value.problems


def test_all_folders_that_are_not_there_are_said_at_once(tmp_path: Path) -> None:
    branches = {f"b{number}": {"trained": f"gone{number}", "role": "sft"} for number in range(9)}
    with pytest.raises(PaftError) as caught:
        open_setup(write_three(tmp_path, branches=branches))
    assert sum("is no folder" in problem for problem in caught.value.problems) == 9


def test_both_forms_at_once_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PaftError, match="sft: stands under `branches:` where that is there"):
        open_setup(write_three(tmp_path, sft="sft.yml"))


def test_a_task_more_trains_nothing_anew(tmp_path: Path) -> None:
    """What is held out does not depend on what else is scored."""
    plans = [
        make_plan(open_setup(write_run(tmp_path, evaluation={"measures": measures}), [], False))
        for measures in ({}, ["arc_easy"])
    ]
    one, other = ({file.name: text for file, text in plan.files.items()}["hold-out.json"] for plan in plans)
    assert one == other


def test_the_base_is_scored_first_if_rows_are_held_out(tmp_path: Path) -> None:
    """Whether it is in the table or not: every arm is compared with it on the rows of the branches that have any."""
    trained = tmp_path / "trained"
    trained.mkdir()
    (trained / "adapter_config.json").write_text("{}")
    evaluation = {"measures": {}, "batch_size": 64}
    setup = open_setup(write_run(tmp_path, evaluation=evaluation, arms=["sft-l1", "paft-*"]), [], False)
    stages = by_name(setup)
    out = setup.run_dir
    scored = [name for name in stages if name.startswith("evaluate-")]
    assert scored == ["evaluate-base", "evaluate-adapters", "evaluate-paft-ties"]
    assert stages["evaluate-base"].needs == ("hold-out",)
    assert stages["evaluate-adapters"].needs == ("hold-out", "evaluate-base", "sft-l1")
    words = stages["evaluate-paft-ties"].command
    expected = ("--held-out", str(out / "held_out"), "--sft", "sft", "--preference", "preference")
    assert words[words.index("--held-out") :][:6] == expected
    assert words[words.index("--base-scores") + 1] == str(out / "scores" / "base")
    assert "--base-scores" not in stages["evaluate-base"].command
    part = by_name(open_setup(write_run(tmp_path, evaluation=evaluation, preference=str(trained)), [], False))
    assert "--preference" not in part["evaluate-base"].command


def test_settings_by_branch_reach_the_recipes_that_have_the_branch(tmp_path: Path) -> None:
    methods = {"ties": {"weight": {"math": 0.5, "*": 2.0}, "filter": ["mlp:density-math=0.1"]}}
    stages = by_name(open_setup(write_three(tmp_path, fusion={"methods": methods})))
    assert "math=0.5" in stages["fuse-paft-ties"].command
    assert "math=0.5" not in stages["fuse-without-math-ties"].command
    assert "2.0" in stages["fuse-without-math-ties"].command
    assert "--filter" not in stages["fuse-without-math-ties"].command


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        (
            {"ties": {"weight": {"maths": 0.5}}},
            "methods.ties: --weight maths=0.5: there is no branch maths. Did you mean math",
        ),
        ({"slerp": {}}, "fusion: methods.slerp: --method slerp: takes exactly 2 branches, not 3"),
    ],
)
def test_settings_that_do_not_fit_the_branches(tmp_path: Path, methods: dict[str, object], said: str) -> None:
    with pytest.raises(PaftError, match=said):
        open_setup(write_three(tmp_path, fusion={"methods": methods}))
