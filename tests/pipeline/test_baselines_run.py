"""The baselines by axolotl itself: the losses of a joint training, and what orders and disjoint modules leave behind."""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from paft_plugin.pipeline.arms import open_setup
from paft_plugin.pipeline.joint_rows import JointRequest, write_joint_rows
from paft_plugin.pipeline.plan import make_plan
from paft_plugin.runner.stages import Stage
from tests.pipeline.runs import edit, training, write_run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forked")]
STRATEGIES: dict[str, dict[str, Any]] = {
    "dpo": {"rl_beta": 0.5},
    "ipo": {"rl_beta": 0.5},
    "orpo": {"rl_beta": None, "orpo_alpha": 1.0, "remove_unused_columns": False},
    "simpo": {"rl_beta": 2.0, "cpo_alpha": 1.0, "simpo_gamma": 1.0},
}
ARGILLA = {"type": "chat_template.argilla", "field_messages": None}


def joint_trainer(folder: Path, strategy: str) -> Any:
    """The trainer that `axolotl train` makes of the joint training's config, on its rows."""
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_preference_datasets
    from axolotl.train import setup_model_and_trainer

    file = write_run(folder, sft_steps=1, preference_steps=1, compare=["joint"], evaluation=False)
    entry = {**training("dpo", 1)["datasets"][0], **(ARGILLA if strategy == "orpo" else {})}
    entry = {key: value for key, value in entry.items() if value is not None}
    edit(
        file,
        preference={"config": "dpo.yml", "overrides": {"rl": strategy, "datasets": [entry], **STRATEGIES[strategy]}},
    )
    plan = make_plan(open_setup(file))
    texts = {path.name: text for path, text in plan.files.items()}
    write_joint_rows(JointRequest.model_validate_json(texts["joint-rows.json"]))
    config = yaml.safe_load(texts["joint.yml"])
    (folder / "joint.yml").write_text(yaml.safe_dump({**config, "dataset_num_proc": 1}), encoding="utf-8")
    cfg = load_cfg(str(folder / "joint.yml"))
    return setup_model_and_trainer(cfg, load_preference_datasets(cfg=cfg))[0]


def gradient(trainer: Any, loss: torch.Tensor) -> torch.Tensor:
    """Of everything that trains, in one row; at a new adapter that of A is 0."""
    trainer.model.zero_grad()
    loss.backward()
    return torch.cat([each.grad.flatten() for each in trainer.model.parameters() if each.grad is not None])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_of_an_sft_row_the_joint_loss_leaves_the_sft_loss_alone(tmp_path: Path, strategy: str) -> None:
    trainer = joint_trainer(tmp_path, strategy)
    rows = list(trainer.train_dataset)
    sides = ("chosen_ids", "rejected_ids") if "chosen_ids" in rows[0] else ("chosen_input_ids", "rejected_input_ids")
    same = [row for row in rows if row[sides[0]] == row[sides[1]]]
    assert (len(same), len(rows)) == (8, 16)
    batch = trainer.data_collator(same[:1])
    found = gradient(trainer, trainer.compute_loss(trainer.model, batch))
    row = same[0]
    ids = [*row["prompt_ids"], *row["chosen_ids"]] if "prompt_ids" in row else row["chosen_input_ids"]
    start = len(row["prompt_ids"]) if "prompt_ids" in row else sum(label == -100 for label in row["chosen_labels"])
    start = 1 if strategy == "orpo" else start  # whose SFT loss counts the prompt in
    logits = trainer.model(input_ids=torch.tensor([ids])).logits[0, start - 1 : -1]
    wanted = gradient(trainer, torch.nn.functional.cross_entropy(logits, torch.tensor(ids[start:])))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-6)
    assert wanted.norm() > 1e-3


def run_here(stages: Iterable[Stage], log: Path) -> None:
    """Run stages one after another, each in a fork that has imported the libraries already."""
    fork = multiprocessing.get_context("fork")
    for stage in stages:
        process = fork.Process(target=_run, args=(stage.command[2:], log))
        process.start()
        process.join()
        assert process.exitcode == 0, f"{stage.name}: {log.read_text(encoding='utf-8', errors='replace')[-3000:]}"


def _run(command: tuple[str, ...], log: Path) -> None:
    module, *arguments = command
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = file
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)


def adapted(folder: Path) -> set[str]:
    """The modules that an adapter changes."""
    names = load_file(folder / "adapter_model.safetensors")
    return {name.split(".lora_")[0].removeprefix("base_model.model.") for name in names}


def test_a_run_of_all_baselines(tmp_path: Path) -> None:
    words = ["joint", "disjoint", {"sequential": [["preference", "sft"]]}]
    file = write_run(tmp_path, sft_steps=6, preference_steps=6, compare=words, evaluation=False, arms=["base"])
    setup = open_setup(file)
    plan = make_plan(setup)
    plan.write_files()
    run = setup.run_dir
    spared = ("report", "inspect-fused", "inspect-branches", "sft")
    run_here([stage for stage in plan.stages if stage.name not in spared], tmp_path / "log")

    sft, preference = (adapted(run / "branches" / f"disjoint-{name}") for name in ("sft", "preference"))
    assert all(".mlp." in module for module in sft)
    assert all(".self_attn." in module for module in preference)
    base = load_file(setup.base / "model.safetensors")
    disjoint = load_file(run / "models" / "disjoint" / "model.safetensors")
    moved = {name for name, tensor in disjoint.items() if not torch.equal(tensor, base[name])}
    assert {name.removesuffix(".weight") for name in moved} == sft | preference
    said = "disjoint-sft and disjoint-preference change no tensor in common"
    assert said in (tmp_path / "log").read_text(encoding="utf-8")

    order = [
        load_file(run / "models" / name / "model.safetensors") for name in ("dpo-whole", "sequential-preference-sft")
    ]
    assert any(not torch.equal(order[0][name], base[name]) for name in base)
    assert any(not torch.equal(order[0][name], order[1][name]) for name in base)
    config = json.loads(
        (run / "branches" / "sequential-preference-sft" / "adapter_config.json").read_text(encoding="utf-8")
    )
    assert config["base_model_name_or_path"] == str(run / "models" / "dpo-whole")

    (state,) = (run / "branches" / "joint").glob("checkpoint-12/trainer_state.json")
    history = [
        entry for entry in json.loads(state.read_text(encoding="utf-8"))["log_history"] if "rewards/margins" in entry
    ]
    assert len(history) == 6 + 6, "the steps of both trainings"
    assert history[-1]["rewards/margins"] > history[0]["rewards/margins"] == 0
