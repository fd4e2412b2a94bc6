"""What a config may say, and what it is told when it says something else."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from paft_plugin.args import PAFTArgs, misspelt_keys, wrong_run
from paft_plugin.errors import PaftError
from paft_plugin.plugin import refuse_lost_options

NAMED: dict[str, Any] = {"plugins": ["paft_plugin.PAFTPlugin"]}
KNOWN = {*PAFTArgs.model_fields, "learning_rate", "lora_r", "plugins"}


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("paft_lamda", "paft_l1_lambda"),
        ("paft_l1_lamda", "paft_l1_lambda"),
        ("paft_lambda", "paft_l1_lambda"),
        ("PAFT_L1_LAMBDA", "paft_l1_lambda"),
        ("paft-l1-lambda", "paft_l1_lambda"),
        ("paft.l1.on", "paft_l1_on"),
        ("l1_lambda", "paft_l1_lambda"),
        ("pfat_l1_on", "paft_l1_on"),
        ("pat_sparsity_thresholds", "paft_sparsity_thresholds"),
        ("paft_sparsity_threshold", "paft_sparsity_thresholds"),
    ],
)
def test_a_near_miss_is_an_error_with_a_suggestion(key: str, meant: str) -> None:
    (problem,) = misspelt_keys([key], KNOWN)
    assert problem.startswith(f"{key}: no such key")
    assert f"did you mean {meant}?" in problem


def test_an_unknown_paft_key_lists_the_known_ones() -> None:
    (problem,) = misspelt_keys(["paft_zzzz"], KNOWN)
    assert all(key in problem for key in PAFTArgs.model_fields)


def test_keys_of_others_are_left_alone() -> None:
    """`inference` is what `axolotl inference` adds to a config; its schema does not know it."""
    others = ["grokfast_alpha", "liger_rope", "lm_eval_tasks", "val_set_size", "inference", "vllm_mode", 3]
    assert misspelt_keys([*KNOWN, *others], KNOWN) == []


@pytest.mark.parametrize(
    "bad",
    [
        {"paft_l1_lambda": -1},
        {"paft_l1_lambda": float("nan")},
        {"paft_l1_lambda": float("inf")},
        {"paft_l1_lambda": "much"},
        {"paft_l1_on": "product"},
        {"paft_l2_lambda": -1},
        {"paft_max_loss_increase": 0},
        {"paft_l1_from": 1},
        {"paft_l1_until": 0},
        {"paft_sparsity_thresholds": []},
        {"paft_sparsity_thresholds": [-1e-5]},
        {"paft_sparsity_thresholds": 1e-5},
        {"paft_target_sparsity": 0},
        {"paft_target_sparsity": 1},
        {"paft_target_sparsity": 90},
        {"paft_target_threshold": -1e-5},
        {"paft_l1_warmup_ratio": 1.5},
        {"paft_l1_warmup_ratio": -0.1},
        {"paft_l1_mode": "prox"},
        {"paft_reference": "gpu"},
        {"paft_inspect_steps": 0},
        {"paft_inspect_steps": -50},
        {"paft_inspect_steps": 0.5},
        {"paft_inspect_steps": True},
        {"paft_inspect_steps": "often"},
    ],
)
def test_a_bad_value_is_an_error_that_names_its_key(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(bad))):
        PAFTArgs(**NAMED, **{"paft_l1_lambda": 1e-4, **bad})


def test_inspection_is_off_until_it_is_asked_for() -> None:
    assert PAFTArgs(**NAMED, paft_l1_lambda=0).paft_inspect_steps is None
    assert PAFTArgs(**NAMED, paft_l1_lambda=0, paft_inspect_steps=None).paft_inspect_steps is None
    assert PAFTArgs(**NAMED, paft_l1_lambda=0, paft_inspect_steps=1).paft_inspect_steps == 1


def test_a_number_that_yaml_reads_as_text_is_a_number() -> None:
    assert yaml.safe_load("1e-4") == "1e-4"
    args = PAFTArgs(**NAMED, paft_l1_lambda="1e-4", paft_sparsity_thresholds=["1e-5"])
    assert args.paft_l1_lambda == 1e-4
    assert args.paft_sparsity_thresholds == [1e-5]


WRONG_RUNS: dict[str, dict[str, Any]] = {
    "rl": {"rl": "grpo"},
    "fsdp_config": {"rl": "dpo", "fsdp_version": 2, "fsdp_config": {"reshard_after_forward": True}},
    "deepspeed": {"rl": "dpo", "deepspeed": "zero2.json"},
    "reward_model": {"reward_model": True},
    "relora": {"relora": True},
    "peft_use_dora": {"peft_use_dora": True},
    "peft_init_lora_weights": {"peft_init_lora_weights": "pissa"},
    "lisa_step_interval": {"lisa_step_interval": 20},
    "adapter": {"adapter": "llama-adapter"},
    "paft_l1_on": {"adapter": None, "paft_l1_on": "factors"},
    "fix_untrained_tokens": {"fix_untrained_tokens": True},
    "reinit_weights": {"adapter": None, "reinit_weights": True},
    "hatchery": {"hatchery": {"backend": "tinker"}},
    "llmcompressor": {"llmcompressor": {"recipe": {}}},
    "fsdp_version": {"fsdp_config": {"reshard_after_forward": True}},
    "paft_l1_mode": {"paft_l1_mode": "proximal"},
    "paft_l1_lambda": {"paft_l1_lambda": 0.0, "paft_target_sparsity": 0.9},
    "paft_l1_warmup_ratio": {"paft_l1_warmup_ratio": 0.1, "paft_target_sparsity": 0.9},
    "paft_max_loss_increase": {"paft_max_loss_increase": 0.01},
    "paft_reference_loss": {"paft_reference_loss": 0.1},
    "paft_l1_from": {"paft_l1_from": 0.6, "paft_l1_until": 0.5, "paft_l1_on": "factors", "paft_l1_mode": "proximal"},
    "paft_l1_until": {"paft_l1_until": 0.5},
    "context_parallel_size": {"context_parallel_size": 2},
    "tensor_parallel_size": {"tensor_parallel_size": 2},
    "lora_fp32_gradients": {"lora_fp32_gradients": True, "deepspeed": "zero2.json"},
    "optimizer": {"optimizer": "galore_adamw_layerwise"},
}


@pytest.mark.parametrize("key", WRONG_RUNS)
def test_a_wrong_kind_of_run_is_an_error_that_names_the_setting(key: str) -> None:
    right = {"adapter": "lora", "paft_l1_lambda": 1e-4, "optimizer": "adamw_torch"}
    assert wrong_run(right) == []
    (problem,) = wrong_run(right | WRONG_RUNS[key])
    assert problem.startswith(f"{key}:")


@pytest.mark.parametrize(
    "settings",
    [
        {"fsdp_version": 2, "fsdp_config": {"reshard_after_forward": True}},
        {"deepspeed": "zero2.json"},
        {"lora_fp32_gradients": True},
        {"dp_shard_size": 2},
        {"lora_target_parameters": ["mlp.experts.down_proj"]},
        {"peft_trainable_token_indices": [1]},
        {"paft_l1_mode": "proximal", "paft_l1_on": "factors"},
        {"paft_l1_mode": "proximal", "adapter": None},
        {"paft_target_sparsity": 0.9, "paft_l1_lambda": None},
        {"paft_l2_lambda": 0.1, "paft_l1_lambda": None},
        {"rl": "dpo"},
        {"paft_max_loss_increase": 0.01, "paft_reference_loss": "branches/sft", "paft_l1_lambda": None},
        {"paft_l1_until": 0.5, "adapter": None},
        {"rl": "kto", "paft_target_sparsity": 0.9},
    ],
    ids=str,
)
def test_what_the_penalty_covers_is_let_through(settings: dict[str, Any]) -> None:
    right = {"adapter": "lora", "paft_l1_lambda": 1e-4, "optimizer": "adamw_torch"}
    assert wrong_run(right | settings) == []


def test_a_proximal_step_that_an_optimizer_would_undo_is_an_error() -> None:
    config = {"paft_l1_lambda": 1e-4, "paft_l1_mode": "proximal", "optimizer": "schedule_free_adamw"}
    (problem,) = wrong_run(config)
    assert problem.startswith("optimizer: schedule_free_adamw:")
    assert wrong_run({**config, "paft_l1_mode": "subgradient"}) == []


def test_all_mistakes_come_at_once() -> None:
    problems = wrong_run(
        {"adapter": "lora", "paft_l1_lambda": 0.1, "relora": True, "peft_use_dora": True, "rl": "grpo"}
    )
    assert len(problems) == 3


def test_the_plugin_without_a_strength_is_an_error() -> None:
    with pytest.raises(ValidationError, match="paft_l1_lambda is not set"):
        PAFTArgs(**NAMED)


@pytest.mark.parametrize(
    "setting",
    [{"paft_l1_on": "factors"}, {"paft_l1_mode": "proximal", "adapter": None}, {"paft_l1_warmup_ratio": 0.1}],
    ids=str,
)
def test_how_the_l1_penalty_is_to_be_says_nothing_where_there_is_none(setting: dict[str, Any]) -> None:
    (problem,) = wrong_run({"adapter": "lora", "paft_l2_lambda": 0.1, **setting})
    assert problem.startswith(f"{next(iter(setting))}: there is no L1 penalty")


def test_a_threshold_that_nothing_refers_to_is_refused() -> None:
    given = {"adapter": "lora", "paft_l1_lambda": 0.1, "paft_target_threshold": 1e-3}
    (problem,) = wrong_run(given)
    assert problem.startswith("paft_target_threshold: nothing refers to it")
    assert (
        wrong_run({**given, "paft_target_sparsity": 0.9}) == wrong_run({**given, "paft_target_threshold": 1e-5}) == []
    )


@pytest.mark.parametrize(
    ("argument", "config"),
    [
        ("--paft_l1_lambda=1e-3", {}),
        ("--paft-l1-lambda=1e-3", {"paft_l1_lambda": 1e-4}),
        ("--paft_l1_lambda", {}),
        ("--paft_l1_lambda 1e-3", {"paft_l1_lambda": 1e-4}),
    ],
)
def test_an_option_that_axolotl_drops_is_refused(argument: str, config: dict[str, Any]) -> None:
    with pytest.raises(PaftError, match=f"{argument} on the command line does not reach the run"):
        refuse_lost_options(["axolotl", "train", "sft.yml", *argument.split()], config)


def test_an_option_that_arrived_is_fine() -> None:
    arrived = {"paft_l1_lambda": 1e-3}
    refuse_lost_options(["train.py", "sft.yml", "--paft_l1_lambda=1e-3", "--learning-rate=1"], arrived)
    refuse_lost_options(["train.py", "--paft_l1_lambda", "1e-3", "--learning-rate=1", "sft.yml"], arrived)
