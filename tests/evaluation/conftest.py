"""A tiny random model, and hand-made items small enough to know every score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from paft_plugin.demo.configs import QUICK_DEMO, paft_yml
from paft_plugin.demo.data import write_tasks
from paft_plugin.demo.pretrain import build_tokenizer
from paft_plugin.evaluation.config import EvaluationConfig
from paft_plugin.evaluation.results import ArmScore
from paft_plugin.evaluation.score import score_model
from paft_plugin.evaluation.scorer import Scorer
from paft_plugin.evaluation.tasks import open_measures

SKILL = [("add 1+2", "3"), ("add 10+2", "12"), ("add 20+31", "51"), ("add 4+4", "8")]
RETAINED = [("copy", "copy abc", "abc"), ("copy", "copy hijab", "hijab"), ("sort", "sort dcba", "abcd")]
STYLE = [
    ("add", "add 2+2", "4"),
    ("copy", "copy ab", "ab"),
    ("twice", "twice ab", "abab"),
    ("reverse", "rev abcd", "dcba"),
]
# Of very different lengths, so that even a random model likes some of the chosen ones better.
PREFERENCE = [
    ("copy ab", "ab.", "no ababab?"),
    ("copy abc", "sure: abc!", "c."),
    ("twice d", "dd.", "sure: dddd!"),
    ("twice ij", "sure: ijij!", "no ijij?"),
    ("copy ghij", "g.", "ghij."),
    ("copy face", "no face?", "face."),
]


def build_model(directory: Path, *, seed: int = 0, hidden: int = 32) -> Path:
    """Save a random Llama with large weights (small ones would find all texts equally likely) and the demo's tokenizer."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=64,
            initializer_range=0.4,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def demo_config(tasks: Path, **changes: Any) -> EvaluationConfig:
    """The demo's measures, with tasks elsewhere; keyword arguments replace keys."""
    section = yaml.safe_load(paft_yml(QUICK_DEMO))["evaluation"]
    return EvaluationConfig.model_validate({**section, "tasks": tasks, **changes})


def demo_score(model: Any, tasks: Path) -> ArmScore:
    """What lm-eval's `model` scores on the demo's measures."""
    config = demo_config(tasks)
    measures, opened = open_measures(config.measures, config.tasks)
    return score_model(Scorer(model, opened), measures)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped tasks, pointed at hand-made items, in a folder whose name has what paths must not trip over."""
    run = tmp_path_factory.mktemp("run [1] 'of' {2}")
    items = run / "items"
    write_rows(items / "skill.jsonl", [{"task": "add", "prompt": p, "answer": a} for p, a in SKILL])
    write_rows(items / "retained.jsonl", [{"task": t, "prompt": p, "answer": a} for t, p, a in RETAINED])
    write_rows(items / "style.jsonl", [{"task": t, "prompt": p, "answer": a} for t, p, a in STYLE])
    write_rows(
        items / "preference.jsonl",
        [{"task": p.split()[0], "prompt": p, "chosen": c, "rejected": r} for p, c, r in PREFERENCE],
    )
    write_tasks(run / "tasks", items)
    return run / "tasks"
