"""The plugin inside real `axolotl train` runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.end_to_end.runs import LORA, PLUGIN, axolotl, axolotl_train, record, seeded_train, succeed, weights
from tests.offered import NEW_LINE

pytestmark = pytest.mark.slow
LOCAL = ("--launcher", "python")
Config = Callable[..., Path]


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_strength_zero_is_bit_identical_to_no_plugin(kind: str, config: Config, tmp_path: Path) -> None:
    settings = LORA if kind == "lora" else {}
    succeed(seeded_train(config("without", **settings)))
    succeed(axolotl_train(config("with", paft_l1_lambda=0, paft_inspect_steps=1, **PLUGIN, **settings)))
    without, with_plugin = weights(tmp_path / "without"), weights(tmp_path / "with")
    assert without.keys() == with_plugin.keys()
    assert all(torch.equal(without[name], with_plugin[name]) for name in without)
    assert record(tmp_path / "with")["steps_penalised"] == 0


def test_the_same_seed_gives_the_same_weights_and_another_one_does_not(config: Config, tmp_path: Path) -> None:
    for name, seed in (("one", 7), ("again", 7), ("other", 8)):
        succeed(axolotl_train(config(name, paft_l1_lambda=1e-3, seed=seed, num_epochs=2, **PLUGIN, **LORA)))
    one, again, other = (weights(tmp_path / name) for name in ("one", "again", "other"))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_more_strength_more_sparsity(config: Config, tmp_path: Path) -> None:
    sparsity, norm = [], []
    for strength in (0.0, 1e-3, 1e-2):
        name = f"strength {strength}"
        succeed(axolotl_train(config(name, paft_l1_lambda=strength, num_epochs=30, **PLUGIN, **LORA)))
        sparsity.append(record(tmp_path / name)["sparsity"]["1e-05"])
        norm.append(record(tmp_path / name)["l1_norm"])
    assert sparsity[0] < sparsity[1] < sparsity[2]
    assert norm[0] > norm[1] > norm[2]


def test_the_other_commands_take_the_same_config(config: Config, tmp_path: Path) -> None:
    """`lora_model_dir` is refused in training, but it is how axolotl's other commands find the adapter."""
    path = config("penalised", paft_l1_lambda=1e-3, num_epochs=1, **PLUGIN, **LORA)
    succeed(axolotl_train(path))
    succeed(axolotl("merge-lora", str(path), f"--lora-model-dir={tmp_path / 'penalised'}"))
    assert (tmp_path / "penalised" / "merged" / "model.safetensors").exists()
    asked = axolotl("inference", str(path), f"--lora-model-dir={tmp_path / 'penalised'}", *LOCAL)
    succeed(asked)  # it waits for instructions, and there are none
    assert "Give me an instruction" in asked.stdout
    if NEW_LINE:
        # It converts with llama.cpp's script; this one stands in for that, which a machine need not have.
        (tmp_path / "convert_hf_to_gguf.py").write_text("import pathlib, sys; pathlib.Path(sys.argv[3]).touch()")
        succeed(axolotl("export", str(path), f"--llama-cpp-dir={tmp_path}"))
        assert list((tmp_path / "penalised").glob("gguf/*.gguf"))
    succeed(
        axolotl("evaluate", str(config("evaluated", paft_l1_lambda=1e-3, val_set_size=2, **PLUGIN, **LORA)), *LOCAL)
    )
    again = config("continued", paft_l1_lambda=1e-3, lora_model_dir=str(tmp_path / "penalised"), **PLUGIN, **LORA)
    run = axolotl_train(again)
    assert run.returncode != 0
    assert "a run that continues an adapter starts from δ ≠ 0" in run.stdout + run.stderr


ONE_AFTER_THE_OTHER = """
import sys
from axolotl.cli.train import do_cli
from transformers import set_seed
configs, sys.argv = sys.argv[1:], ["train"]
for config in configs:
    set_seed(7)
    do_cli(config)
"""


def test_a_run_without_it_is_the_same_after_one_with_it_in_the_same_process(config: Config, tmp_path: Path) -> None:
    """As in a sweep: axolotl 0.20 and later keeps a plugin for all configs that a process reads."""
    pairs = [{"prompt": f"Sort {n} 1.", "chosen": f"1 {n}", "rejected": f"{n} 1"} for n in range(2, 8)]
    rows = tmp_path / "pairs.jsonl"
    rows.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    formats = {f"{part}_format": f"{{{part}}}" for part in ("prompt", "chosen", "rejected")}
    data = {"path": str(rows), "split": "train", "type": {"field_prompt": "prompt", **formats}}
    dpo = {"rl": "dpo", "datasets": [data], **LORA}
    stock = [config(f"stock {kind}", **keys, num_epochs=2) for kind, keys in (("dpo", dpo), ("sft", LORA))]
    later = [config(f"later {kind}", **keys, num_epochs=2) for kind, keys in (("dpo", dpo), ("sft", LORA))]
    first, last = (config(name, paft_l1_lambda=1e-3, num_epochs=2, **PLUGIN, **LORA) for name in ("first", "last"))
    for configs in (stock, [first, *later, last]):
        command = [sys.executable, "-c", ONE_AFTER_THE_OTHER, *map(str, configs)]
        succeed(subprocess.run(command, capture_output=True, text=True, timeout=600, check=False))
    for one, other in (("stock dpo", "later dpo"), ("stock sft", "later sft"), ("first", "last")):
        theirs, ours = weights(tmp_path / one), weights(tmp_path / other)
        assert all(torch.equal(theirs[name], ours[name]) for name in theirs), one
    assert record(tmp_path / "last")["steps_penalised"] == 2
    assert not [*(tmp_path / "later dpo").glob("paft*"), *(tmp_path / "later sft").glob("paft*")]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"paft_l1_lamda": 1e-4, **LORA}, "paft_l1_lamda: no such key; did you mean paft_l1_lambda?"),
        ({"paft_l1_lambda": 1e-4, "paft_inspect_steps": 0, **LORA}, "paft_inspect_steps"),
        ({"paft_l1_lambda": 1e-4, "peft_use_dora": True, **LORA}, "peft_use_dora: under DoRA the delta is not s·BA"),
        ({"paft_l1_lambda": 1e-4, "rl": "grpo", **LORA}, "rl: grpo: the penalty belongs to the SFT branch"),
    ],
    ids=["typo", "no steps", "dora", "rl"],
)
def test_a_mistake_in_the_config_stops_the_run(
    changes: dict[str, Any], named: str, config: Config, tmp_path: Path
) -> None:
    run = axolotl_train(config("mistaken", **PLUGIN, **changes))
    assert run.returncode != 0
    assert named in run.stdout + run.stderr
    assert not (tmp_path / "mistaken" / "paft.json").exists()
