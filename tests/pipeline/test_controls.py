"""Controls in a run: what `compare: {NAME: {control: …}}` plans, refuses, and writes for real adapters and models."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml

from paft_plugin.deltas.controls import CONTROL_FILE, ControlFile, measured
from paft_plugin.deltas.delta import open_delta
from paft_plugin.errors import PaftError, run_request
from paft_plugin.evaluation.arms import ControlKind
from paft_plugin.fusion.merge import open_fusion
from paft_plugin.pipeline.arms import open_setup
from paft_plugin.pipeline.baselines import ControlRequest
from paft_plugin.pipeline.config import ControlSpec
from paft_plugin.pipeline.controls import make_control, work
from paft_plugin.pipeline.plan import make_plan
from tests.deltas.builders import load_peft, make_adapter, make_base, make_model, weights
from tests.pipeline.runs import write_run

LIKE = {"of": "sft", "like": "sft-l1"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a dense branch and a smaller one of which some is small, as adapters; the dense one as a model, too."""
    folder = tmp_path_factory.mktemp("models")
    base = make_base(folder / "base", tie_word_embeddings=True)
    make_adapter(base, folder / "sft", seed=1, size=0.02)
    make_adapter(base, folder / "sft-l1", seed=2, size=0.002)
    make_adapter(base, folder / "narrow", seed=2, size=0.002, target_modules=["q_proj"])
    make_model(base, folder / "whole")
    return folder


def request(models: Path, folder: Path, control: str, **keys: Any) -> ControlRequest:
    own = {"of": "sft"} if control == "scale" or "sparsity" in keys else LIKE
    spec = ControlSpec.model_validate({"control": control, **own, **keys})
    return ControlRequest(
        spec=spec,
        base=models / "base",
        of=models / spec.of,
        like=models / spec.like if spec.like else None,
        as_adapter=not spec.is_sparse and spec.of != "whole",
        folder=folder / control,
    )


@pytest.mark.parametrize("control", ["rescale_l2", "rescale_l1", "prune_rescale"])
def test_the_norm_is_that_of_the_other_as_read_from_what_was_written(
    models: Path, tmp_path: Path, control: str
) -> None:
    made = make_control(request(models, tmp_path, control))
    assert made.like_size is not None
    norm = "l1" if control == "rescale_l1" else "l2"
    assert getattr(made.reached, norm) == pytest.approx(getattr(made.like_size, norm), rel=1e-6)
    again = measured(open_delta(models / "base", tmp_path / control).tensors, made.threshold)
    assert again == made.reached
    assert ControlFile.read(tmp_path / control / CONTROL_FILE) == made


@pytest.mark.parametrize("control", ["prune", "prune_rescale", "drop"])
def test_as_many_entries_are_zero_as_the_other_has_small_ones(models: Path, tmp_path: Path, control: str) -> None:
    made = make_control(request(models, tmp_path, control, threshold=3e-4))
    assert made.like_size is not None
    assert 0.1 < made.like_size.share < 0.9
    # Where the base is large enough for fp32 to lose a small entry there are a few zeros more.
    assert made.like_size.small <= made.reached.zeros <= made.like_size.small + made.reached.entries // 1000
    assert made.reached.entries == made.before.entries == made.like_size.entries


@pytest.mark.parametrize("control", ["prune", "drop"])
def test_a_share_may_be_said_where_no_other_branch_has_it(models: Path, tmp_path: Path, control: str) -> None:
    said = ControlSpec.model_validate({"control": control, "of": "sft", "sparsity": 0.9})
    made = make_control(
        ControlRequest(spec=said, base=models / "base", of=models / "sft", folder=tmp_path / "said", as_adapter=False)
    )
    assert made.reached.share == pytest.approx(0.9, abs=1e-3)
    assert (made.like, made.like_size, made.wanted["share"]) == (None, None, pytest.approx(0.9, abs=1e-6))


def test_a_scaled_adapter_keeps_its_factors_and_peft_loads_it_so(models: Path, tmp_path: Path) -> None:
    make_control(request(models, tmp_path, "scale", factor=0.25))
    files = [folder / "adapter_model.safetensors" for folder in (models / "sft", tmp_path / "scale")]
    assert files[0].read_bytes() == files[1].read_bytes()
    whole, quarter = (load_peft(models / "base", folder) for folder in (models / "sft", tmp_path / "scale"))
    layers = [model.base_model.model.model.layers[0].mlp.up_proj for model in (whole, quarter)]
    one, other = (layer.get_delta_weight("default") for layer in layers)
    torch.testing.assert_close(other, one / 4)


def test_a_pruned_adapter_is_a_model_that_transformers_loads_with_nothing_else_changed(
    models: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    made = make_control(request(models, tmp_path, "prune", threshold=3e-4))
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "prune", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    after, before = loaded.state_dict(), AutoModelForCausalLM.from_pretrained(models / "base").state_dict()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == set(made.tensors)
    dense = dict(open_delta(models / "base", models / "sft").tensors())
    for name, tensor in open_delta(models / "base", tmp_path / "prune").tensors():
        kept = tensor != 0
        torch.testing.assert_close(tensor[kept], dense[name][kept], rtol=0, atol=1e-8)


def test_a_whole_model_and_a_control_of_a_control_are_rescaled(models: Path, tmp_path: Path) -> None:
    made = make_control(request(models, tmp_path, "scale", of="whole", factor=0.5))
    assert made.reached.l2 == pytest.approx(made.before.l2 / 2, rel=1e-4)
    make_control(request(models, tmp_path, "prune"))
    spec = ControlSpec(control="rescale_l2", of="prune", like="sft")
    folders = {"of": tmp_path / "prune", "like": models / "sft", "folder": tmp_path / "again"}
    again = make_control(ControlRequest(spec=spec, base=models / "base", as_adapter=False, **folders))
    assert again.like_size is not None
    assert again.reached.l2 == pytest.approx(again.like_size.l2, rel=1e-6)


def test_the_tensors_that_a_base_ties_stay_tied(models: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    make_control(request(models, tmp_path, "scale", of="whole", factor=2))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "scale")
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_the_stage_says_what_cannot_be_and_leaves_nothing(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = {
        "change different tensors": request(models, tmp_path, "prune", like="narrow"),
        "sft-l1 is sparser than sft already": request(
            models, tmp_path, "prune", of="sft-l1", like="sft", threshold=3e-4
        ),
        "sft is sparser than that already": request(models, tmp_path, "prune", sparsity=0.01, threshold=1e-2),
    }
    for said, one in wrong.items():
        (tmp_path / "request.json").write_text(one.model_dump_json(exclude_unset=True))
        assert run_request([str(tmp_path / "request.json")], "paft_plugin.pipeline.controls", work) == 2
        assert said in capsys.readouterr().err
        assert not one.folder.exists()


@pytest.mark.parametrize("control", get_args(ControlKind))
def test_every_control_is_fused_like_a_trained_branch(models: Path, tmp_path: Path, control: str) -> None:
    keys = (
        {"factor": 0.5} if control == "scale" else {"threshold": 3e-4} if control.startswith(("prune", "drop")) else {}
    )
    made = make_control(request(models, tmp_path, control, **keys))
    base, folder = models / "base", tmp_path / control
    model = f"{base}+{folder}" if (folder / "adapter_config.json").is_file() else str(folder)
    recipe = tmp_path / "recipe.yml"
    for method, parameters in {"task_arithmetic": {"weight": 1}, "ties": {"weight": 1, "density": 0.5}}.items():
        content = {
            "merge_method": method,
            "base_model": str(base),
            "dtype": "float32",
            "parameters": {"normalize": False},
            "models": [{"model": each, "parameters": parameters} for each in (model, f"{base}+{models / 'narrow'}")],
        }
        recipe.write_text(yaml.safe_dump(content))
        fused = dict(open_fusion(recipe).tensors())
        assert all(bool(tensor.isfinite().all()) for tensor in fused.values())
        if method == "task_arithmetic":
            sums = dict(open_delta(base, folder).tensors())
            assert set(sums) == set(made.tensors)
            for name, delta in open_delta(base, models / "narrow").tensors():
                sums[name] = sums[name] + delta
            for name, delta in sums.items():
                torch.testing.assert_close(fused[name] - weights(base)[name], delta, rtol=0, atol=1e-7)


def test_a_control_is_a_stage_behind_its_two_branches_and_a_branch_to_all_others(tmp_path: Path) -> None:
    compare = {
        "small": {"control": "rescale_l2", **LIKE},
        "pruned": {"control": "prune", **LIKE, "threshold": 1e-4},
        "again": {"control": "rescale_l2", "of": "pruned", "like": "sft"},
    }
    setup = open_setup(write_run(tmp_path, compare=compare, sequential=[["pruned", "preference"]]))
    names = [arm.name for arm in setup.arms]
    assert names == [
        *("base", "sft", "sft-l1", "dpo", "small", "pruned", "again", "sequential-pruned-preference", "paft-ties")
    ]
    arms = {arm.name: arm for arm in setup.arms}
    assert (arms["small"].role, arms["small"].control, arms["small"].penalised) == ("sft", "rescale_l2", False)
    assert [name for name in names if arms[name].beside] == ["small", "pruned", "again"]
    stages = {stage.name: stage for stage in make_plan(setup).stages}
    assert stages["small"].needs == stages["pruned"].needs == ("sft", "sft-l1")
    assert stages["again"].needs == ("pruned", "sft")
    assert stages["sequential-pruned-preference"].needs == ("pruned",)
    assert {"small", "pruned"} <= set(stages["inspect-branches"].needs)
    words = stages["evaluate-adapters"].command
    assert "small" in words
    assert "pruned" not in words
    assert stages["evaluate-pruned"].needs == ("pruned",)


def test_a_control_that_is_not_wanted_is_not_made_and_one_that_is_takes_its_branches(tmp_path: Path) -> None:
    file = write_run(tmp_path, compare={"small": {"control": "rescale_l2", **LIKE}})
    assert "small" not in [branch.name for branch in open_setup(file, ["paft-ties"]).needed]
    assert [branch.name for branch in open_setup(file, ["small"]).needed] == ["sft-l1", "sft", "small"]
    assert [branch.name for branch in open_setup(file, ["small"]).trainings] == ["sft-l1", "sft"]


def test_all_mistakes_of_controls_are_said_at_once(tmp_path: Path) -> None:
    compare = {
        "a": {"control": "prune", "of": "sft"},
        "b": {"control": "scale", "of": "sft", "factor": 0},
        "c": {"control": "scale", **LIKE, "factor": 2, "seed": 1},
        "d": {"control": "shrink", **LIKE},
        "e": {"control": "rescale_l2", "of": "sft", "like": "sft", "factr": 2},
        "f": {"joint": {"sft_wight": 2}},
        "g": {"control": "prune", **LIKE, "sparsity": 0.9},
        "h": {"control": "rescale_l2", **LIKE, "sparsity": 0.9},
    }
    with pytest.raises(PaftError) as caught:
        open_setup(write_run(tmp_path, compare=compare))
    said = "\n".join(caught.value.problems)
    for each in (
        "compare.a: like: missing. `control: prune` needs it.",
        "compare.b.factor: Input should be greater than 0",
        "compare.c: like: is not for `control: scale`",
        "compare.c: seed: is not for `control: scale`",
        "compare.d.control: Input should be 'rescale_l2'",
        "compare.e.factr: no such key. Did you mean factor",
        "compare.f.joint.sft_wight: no such key. Did you mean sft_weight",
        "compare.g: like: is not for `control: prune`",
        "compare.h: sparsity: is not for `control: rescale_l2`",
    ):
        assert each in said
    compare = {
        "a": {"control": "prune", "of": "stf", "like": "sft-l1"},
        "b": {"control": "prune", "of": "sft-l1", "like": "dpo"},
        "dpo": {"control": "scale", "of": "sft", "factor": 2},
        "c": {"control": "scale", "of": "d", "factor": 2},
        "d": {"control": "scale", "of": "sft", "factor": 2},
    }
    with pytest.raises(PaftError) as caught:
        open_setup(write_run(tmp_path, compare=compare))
    said = "\n".join(caught.value.problems)
    for each in (
        "compare.a.of: stf: no branch, and no control above this one. Did you mean sft",
        "compare.b.of: sft-l1 is trained with the penalty",
        "compare.dpo: an arm of the run is called so",
        "compare.c.of: d: no branch, and no control above this one.",
    ):
        assert each in said
    file = write_run(
        tmp_path, compare={"small": {"control": "rescale_l2", **LIKE}}, sequential=[["preference", "small"]]
    )
    with pytest.raises(PaftError, match="small: is a control, which is not trained"):
        open_setup(file)


def test_further_joint_trainings_take_the_same_rows_and_leave_the_first_as_it_is(tmp_path: Path) -> None:
    def plan(**compare: Any) -> dict[Path, str]:
        return dict(make_plan(open_setup(write_run(tmp_path, compare=compare))).files)

    alone, both = plan(joint={}), plan(**{"heavy": {"joint": {"sft_weight": 4}}, "joint": {}})
    for name in ("joint.yml", "joint-rows.json"):
        path = next(path for path in alone if path.name == name)
        assert alone[path] == both[path]
    assert [path.name for path in both if path.name.startswith("joint-rows")] == ["joint-rows.json"]
    heavy = next(text for path, text in both.items() if path.name == "heavy.yml")
    assert "- 4" in heavy
    # IPO is a loss of axolotl's `rl: dpo` and takes its rows; ORPO has a reader of its own.
    for strategy, rows in (("ipo", ["joint-rows.json"]), ("orpo", ["joint-rows-other.json", "joint-rows.json"])):
        files = plan(**{"joint": {}, "other": {"joint": {"overrides": {"rl": strategy, "dpo_loss_type": None}}}})
        assert sorted(path.name for path in files if path.name.startswith("joint-rows")) == rows
