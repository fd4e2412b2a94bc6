"""A tiny random base model with real files, rows for it, and configs that train on them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from paft_plugin.demo import world
from paft_plugin.demo.configs import CPU_ONLY
from paft_plugin.demo.pretrain import build_tokenizer


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with the demo's tokenizer."""
    folder = tmp_path_factory.mktemp("a base + model")
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six SFT rows whose answers have the same number of tokens, so that every split into micro-batches has the same mean."""
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("data") / "sft.jsonl"
    items = [item for item in world.sample_distinct(rng, ["sort"], "train", 60) if item.level == 4][:6]
    path.write_text(
        "".join(
            json.dumps(
                {
                    "messages": [
                        {"role": "user", "content": item.prompt},
                        {"role": "assistant", "content": item.answer},
                    ]
                }
            )
            + "\n"
            for item in items
        )
    )
    return path


@pytest.fixture(scope="session")
def write_config(base: Path, rows: Path) -> Callable[..., Path]:
    """Writes an SFT config on `base` and `rows` into a directory; one optimizer step an epoch, three micro-batches a step."""

    def write(directory: Path, name: str, **changes: Any) -> Path:
        content: dict[str, Any] = {
            "base_model": str(base),
            "datasets": [{"path": str(rows), "ds_type": "json", "split": "train", "type": "chat_template"}],
            "dataset_prepared_path": str(directory / f"{name}-prepared"),
            "output_dir": str(directory / name),
            "sequence_len": 64,
            "micro_batch_size": 2,
            "gradient_accumulation_steps": 3,
            "num_epochs": 4,
            "learning_rate": 0.01,
            "lr_scheduler": "constant",
            "optimizer": "adamw_torch",
            "warmup_steps": 0,
            "weight_decay": 0.0,
            "logging_steps": 1,
            "save_strategy": "no",
            "seed": 7,
            **CPU_ONLY,
            **changes,
        }
        path = directory / f"{name}.yml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


@pytest.fixture
def config(write_config: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """`write_config` into this test's own directory."""
    return partial(write_config, tmp_path)
