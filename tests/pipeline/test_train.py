"""The wrapper around stock `axolotl train`: its seed, its errors, and bit-identical adapters from real runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from packaging.version import Version
from safetensors.torch import save_file

from paft_plugin.errors import PaftError
from paft_plugin.pipeline.train import DEFAULT_SEED, drop_ended, drop_torn, seed_of

WRAPPED = (sys.executable, "-m", "paft_plugin.pipeline.train")


FILE = Path("c.yml")


@pytest.mark.parametrize(
    ("config", "seed"), [({"seed": 7}, 7), ({"lr": 1}, DEFAULT_SEED), ({"seed": None}, DEFAULT_SEED)]
)
def test_the_seed_is_the_one_that_axolotl_takes(config: dict[str, Any], seed: int) -> None:
    assert seed_of(config, FILE) == seed


@pytest.mark.parametrize("seed", [-1, 2**32, True, "x", 1.5])
def test_what_is_no_seed_is_refused(seed: object) -> None:
    with pytest.raises(PaftError, match=r"c\.yml"):
        seed_of({"seed": seed}, FILE)


def checkpoint(folder: Path) -> Path:
    folder.mkdir(parents=True)
    save_file({"a": torch.zeros(100)}, folder / "adapter_model.safetensors")
    torch.save({"b": torch.zeros(100)}, folder / "optimizer.pt")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 2}))
    return folder


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "optimizer.pt", "trainer_state.json"])
@pytest.mark.parametrize("left", [0.0, 0.6])
def test_only_a_checkpoint_that_was_cut_off_is_removed(file: str, left: float, tmp_path: Path) -> None:
    whole, torn = checkpoint(tmp_path / "checkpoint-2"), checkpoint(tmp_path / "checkpoint-4")
    content = (torn / file).read_bytes()
    (torn / file).write_bytes(content[: int(left * len(content))])
    assert drop_torn(tmp_path) == [torn]
    assert [path.name for path in tmp_path.iterdir()] == [whole.name]


def test_a_checkpoint_without_the_file_that_is_written_last_is_removed(tmp_path: Path) -> None:
    (checkpoint(tmp_path / "checkpoint-2") / "trainer_state.json").unlink()
    assert len(drop_torn(tmp_path)) == 1


@pytest.mark.parametrize(
    ("config", "state", "is_removed"),
    [
        ({"max_steps": 20, "num_epochs": 1}, (20, 20, 0.8), True),
        ({"max_steps": 20}, (19, 20, 0.76), False),
        ({"max_steps": 40}, (20, 20, 0.8), False),  # it was 20 then
        ({"max_steps": 25}, (25, 25, 1.0), False),  # Trainer sees the end of an epoch
        ({"max_steps": 25, "streaming": True}, (25, 25, 1.0), True),  # but none of a stream
        ({"num_epochs": 0.5}, (13, 13, 0.52), True),
        ({"num_epochs": 2}, (50, 50, 2.0), False),
        ({"num_epochs": 2}, (17, 17, 17 / 9), True),  # 33 rows in batches of 4, as axolotl 0.19 counts
        ({"num_epochs": 3}, (187, 187, 2.992), True),
        ({"num_epochs": 3}, (125, 125, 1.992), False),  # it was 2 then
        ({"max_steps": -1, "num_epochs": 3}, (10, 75, 0.4), False),
        ({"num_epochs": 3}, (10, 75, None), False),
    ],
)
def test_a_training_that_has_ended_takes_no_step_more(
    config: dict[str, Any], state: tuple[int, int, float], is_removed: bool, tmp_path: Path
) -> None:
    folder = checkpoint(tmp_path / "checkpoint-20")
    said = dict(zip(("global_step", "max_steps", "epoch"), state, strict=True))
    (folder / "trainer_state.json").write_text(json.dumps(said))
    assert drop_ended(tmp_path, config) == [folder] * is_removed
    assert folder.exists() != is_removed


def test_a_missing_config_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    ended = subprocess.run([*WRAPPED, str(tmp_path / "gone.yml")], capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr == f"Error: {tmp_path / 'gone.yml'}: no such file. Give an axolotl config.\n"


@pytest.mark.slow
def test_the_default_seed_is_axolotl_s() -> None:
    from axolotl.utils.schemas.config import AxolotlInputConfig

    assert AxolotlInputConfig.set_default_seed(None) == DEFAULT_SEED


def write_base(folder: Path) -> None:
    """A random Llama of 10 thousand parameters with the demo's tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from paft_plugin.demo.pretrain import build_tokenizer

    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), num_hidden_layers=1, max_position_embeddings=64, **shape, **special)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def preference_config(folder: Path, name: str) -> Path:
    """Two steps of DPO with LoRA on the CPU, as stock axolotl has it; returns the config's path."""
    config: dict[str, Any] = {
        "base_model": str(folder / "base"),
        "rl": "dpo",
        "datasets": [
            {"path": str(folder / "rows.jsonl"), "ds_type": "json", "split": "train", "type": "chat_template.default"}
        ],
        "chat_template": "tokenizer_default",
        "dataset_prepared_path": str(folder / "prepared"),
        "output_dir": str(folder / name),
        "adapter": "lora",
        "lora_r": 4,
        "lora_alpha": 8,
        "lora_target_linear": True,
        "sequence_len": 64,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "max_steps": 2,
        "learning_rate": 1e-3,
        "optimizer": "adamw_torch",
        "lr_scheduler": "constant",
        "save_strategy": "no",
        "seed": 7,
        **dict.fromkeys(("bf16", "fp16", "tf32"), False),
        **{f"lora_{kernel}_kernel": False for kernel in ("mlp", "qkv", "o", "embedding")},
    }
    path = folder / f"{name}.yml"
    path.write_text(yaml.safe_dump(config))
    return path


def train(command: tuple[str, ...], folder: Path) -> bytes:
    """Run a training command; return the adapter's bytes."""
    name = Path(command[-1]).stem
    environment = os.environ | {"OMP_NUM_THREADS": "1", "AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    return (folder / name / "adapter_model.safetensors").read_bytes()


@pytest.mark.slow
def test_two_seeded_runs_are_bit_identical_as_two_stock_runs_are_only_since_axolotl_0_21(tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    turn = [{"role": "user", "content": "say it"}]
    rows = [
        {
            "messages": turn,
            "chosen": {"role": "assistant", "content": f"it is {number}"},
            "rejected": {"role": "assistant", "content": "no"},
        }
        for number in range(8)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    configs = {name: preference_config(tmp_path, name) for name in ("seeded-1", "seeded-2", "stock-1", "stock-2")}
    stock = (str(Path(sys.executable).with_name("axolotl")), "train", "--launcher", "python")
    weights = {
        name: train((*(WRAPPED if name.startswith("seeded") else stock), str(path)), tmp_path)
        for name, path in configs.items()
    }
    assert weights["seeded-1"] == weights["seeded-2"]
    stock_is_seeded = Version(version("axolotl")) >= Version("0.21.dev0")
    assert (weights["stock-1"] == weights["stock-2"]) == stock_is_seeded
