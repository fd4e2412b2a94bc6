"""A ready `paft.yml` goes down the whole road, on a stand-in for its base and a few rows; without its scores, which need the hub.

`PAFT_READY=mistral-7b-v0.1 pytest -m slow tests/axolotl_configs/test_paft_run.py` takes another one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.axolotl_configs.stand_ins import (
    BASES,
    CONFIG_ROOT,
    DIALOGUES,
    make_base,
    ultrachat_rows,
    ultrafeedback_rows,
    write_rows,
)

READY = os.environ.get("PAFT_READY", "qwen2.5-0.5b")
COPIES = 8  # of the few rows: packed, they still make more than one step
# What a CPU lacks, and what so few rows are too small for; everything else stays as it is.
ON_A_CPU: dict[str, Any] = {
    "bf16": False,
    "tf32": False,
    **{f"lora_{part}_kernel": False for part in ("mlp", "qkv", "o", "embedding")},
    "sequence_len": 256,
    "micro_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "val_set_size": 0,
    "evals_per_epoch": None,
    "max_steps": 3,
    "logging_steps": 1,
}


def make_model(name: str, folder: Path) -> Path:
    """Random weights of the base's architecture beside its stand-in's tokenizer."""
    base = make_base(name, folder)
    tokenizer = AutoTokenizer.from_pretrained(base)
    config = AutoConfig.for_model(
        BASES[name].model_type,
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(base)
    return base


@pytest.mark.slow
def test_it_trains_both_branches_and_the_baseline_and_fuses(tmp_path: Path) -> None:
    ready = CONFIG_ROOT / READY
    content = yaml.safe_load((ready / "paft.yml").read_text(encoding="utf-8"))
    base = make_model(content["base"], tmp_path)
    rows = {"sft": ultrachat_rows(DIALOGUES * COPIES), "preference": ultrafeedback_rows() * COPIES}
    for branch, given in rows.items():
        config = ready / content[branch]
        (data,) = yaml.safe_load(config.read_text(encoding="utf-8"))["datasets"]
        data |= {"path": str(write_rows(tmp_path / f"{branch}.jsonl", given)), "ds_type": "json", "split": "train"}
        here = ON_A_CPU | {"base_model": str(base), "datasets": [data]}
        content[branch] = {"config": str(config), "overrides": here}
    content["evaluation"] = False
    file = tmp_path / "paft.yml"
    file.write_text(yaml.safe_dump(content | {"base": str(base), "output_dir": "run"}), encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, "-m", "paft_plugin.cli", "run", str(file)], capture_output=True, text=True, timeout=1200
    )
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-3000:]
    run = tmp_path / "run"
    assert json.loads((run / "branches" / "sft-l1" / "paft.json").read_text())["steps_penalised"] == 3
    for model in ("sequential", "paft-ties", "paft-dare_ties"):
        assert list((run / "models" / model).glob("*.safetensors")), model
    assert (run / "report" / "report.html").is_file()
