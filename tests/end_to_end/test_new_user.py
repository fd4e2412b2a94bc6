"""As a new user: a chat model, rows of one's own, `init`, `run`; the report names an arm, with no lm-eval task anywhere."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from paft_plugin.demo.pretrain import build_tokenizer
from paft_plugin.evaluation.held_out_rows import HeldOutSummary
from paft_plugin.evaluation.results import read_results
from paft_plugin.report.choice import choose
from paft_plugin.search.space import DEFAULTS
from tests.end_to_end.architectures import GROUPED
from tests.pipeline.runs import edit

LETTERS = "abcdefghij"


def write_base(folder: Path) -> None:
    """A chat model of random weights."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    LlamaForCausalLM(LlamaConfig(**GROUPED, vocab_size=len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_rows(folder: Path) -> None:
    words = [f"{one}{two}{three}" for one in LETTERS for two in LETTERS for three in "abc"]
    chats = [
        {"messages": [{"role": "user", "content": f"copy {word}"}, {"role": "assistant", "content": word}]}
        for word in words
    ]
    pairs = [{"prompt": f"sort {word}", "chosen": f"sure: {word}", "rejected": f"no {word}"} for word in words]
    for name, rows in (("chats", chats), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def paft(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "paft_plugin.cli", *arguments]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1200)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    return ended.stdout


@pytest.mark.slow
def test_own_rows_are_enough_for_a_report_that_names_an_arm(tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    write_rows(tmp_path)
    paft(tmp_path, "init", "base", "--sft-data", "chats.jsonl", "--preference-data", "pairs.jsonl", "--output", "mine")
    for name in ("sft", "preference"):  # enough to move the model, which is all that is asked here
        edit(tmp_path / "mine" / f"{name}.yml", max_steps=3, learning_rate=1e-2, warmup_steps=0)
    said = paft(tmp_path, "run", "mine/paft.yml", "--arms", "base,sft,dpo,parallel-task_arithmetic")
    run = tmp_path / "mine" / "run"
    assert HeldOutSummary.read(run / "held_out" / "summary.json").branches["sft"].test == 30
    results = read_results(run)
    assert results is not None
    names = {measure.name for measure in results.measures}
    assert {"sft_nll", "sft_match", "preference", "kl_to_base", "retained"} <= names
    assert [arm.name for arm in results.arms] == ["base", "sft", "dpo", "parallel-task_arithmetic"]
    assert "Read on in" in said
    choice = choose(results)
    assert choice.arm is not None
    assert choice.arm.name in choice.headline or "base model" in choice.headline
    assert f"**{choice.headline}.**" in (run / "README.md").read_text(encoding="utf-8")
    said = paft(tmp_path, "search", "mine/paft.yml", "--trials", str(len(DEFAULTS)))
    assert "sft_match" in said
    recipes = [file.read_text(encoding="utf-8") for file in (run / "search" / "recipes").iterdir()]
    assert recipes
    assert all(f'{run / "branches" / "sft"}"' in text for text in recipes)
