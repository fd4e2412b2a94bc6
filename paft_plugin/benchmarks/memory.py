"""Estimated memory beside the peak of real axolotl runs on the CPU: `python -m paft_plugin.benchmarks memory`.

Two Llamas with random weights, one heavy in layers and one in vocabulary, each trained for two steps as a LoRA SFT, a full SFT
and a LoRA DPO branch, on rows that fill `sequence_len`. The peak is that of the training process's resident memory (`ru_maxrss`);
a run of the demo's small model shows what the process takes by itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import yaml

import paft_plugin.demo
from paft_plugin.benchmarks.harness import BenchmarkRow, Figure, output_option, run_benchmark
from paft_plugin.demo.configs import CPU_ONLY
from paft_plugin.errors import PaftError
from paft_plugin.files import write_bytes, write_text
from paft_plugin.pipeline.estimate.memory import ADDED, Memory, estimate_memory
from paft_plugin.runner.logs import tail

LENGTH = 256
PACKAGES = ("axolotl", "torch", "transformers", "peft", "trl")
MODELS = {
    "deep": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "vocab_size": 8000},
    "wide vocabulary": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "vocab_size": 48000},
}
KINDS: dict[str, dict[str, Any]] = {
    "LoRA SFT": {"adapter": "lora"},
    "full SFT": {},
    "LoRA DPO": {"adapter": "lora", "rl": "dpo"},
}
# A process's ru_maxrss begins at that of the one that forked it, which may be larger than any training; so a small one forks.
_SMALL_PARENT = """
import os, sys
_, status, usage = os.wait4(os.spawnv(os.P_NOWAIT, sys.argv[2], sys.argv[2:]), 0)
with open(sys.argv[1], "w") as file:
    file.write(str(usage.ru_maxrss))
sys.exit(os.waitstatus_to_exitcode(status) != 0)
"""
_LORA = {"lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "lora_target_linear": True}


def measure(folder: Path) -> Iterator[BenchmarkRow]:
    """A row for each model and kind, as soon as it is measured: estimate and peak in MB, and their ratio."""
    demo = Path(paft_plugin.demo.__file__).parent / "base"
    run = folder / "alone"
    alone = _peak_of_training(run, _config(run, demo, KINDS["LoRA SFT"], length=32, batch=1), demo)
    yield BenchmarkRow("the process alone", [Figure("peak", alone / 1e6, "MB")])
    for name, shape in MODELS.items():
        base = _model(folder / name.replace(" ", "-"), demo, shape)
        for kind, keys in KINDS.items():
            click.echo(f"{name}, {kind} …", err=True)
            run = folder / f"{base.name}-{kind.replace(' ', '-').lower()}"
            config = _config(run, base, keys, length=LENGTH, batch=4)
            estimate = estimate_memory(config, base, cpu=True)
            yield _row(f"{name}, {kind}", estimate, _peak_of_training(run, config, demo), alone)


def _row(name: str, estimate: Memory, peak: int, alone: int) -> BenchmarkRow:
    ours = estimate.total - estimate.process * (1 + ADDED)
    figures = [
        Figure("estimate", estimate.total / 1e6, "MB"),
        Figure("peak", peak / 1e6, "MB"),
        Figure("estimate / peak", estimate.total / peak, "", at_least=1.0),
        Figure("without the process", ours / (peak - alone), ""),
    ]
    return BenchmarkRow(name, figures)


def _model(folder: Path, demo: Path, shape: Mapping[str, int]) -> Path:
    """A Llama with random weights and the demo's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    small = json.loads((demo / "config.json").read_text())
    ids = {key: small[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in small}
    config = LlamaConfig(**shape, **ids, num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=1024)
    LlamaForCausalLM(config).save_pretrained(folder)
    for file in demo.iterdir():
        if "token" in file.name or file.name == "chat_template.jinja":
            write_bytes(folder / file.name, file.read_bytes())
    return folder


def _config(run: Path, base: Path, keys: Mapping[str, Any], length: int, batch: int) -> dict[str, Any]:
    kind = "chat_template.default" if "rl" in keys else "chat_template"
    fields = {"field_messages": "question"} if "rl" in keys else {}
    return {
        "base_model": str(base),
        "chat_template": "tokenizer_default",
        **keys,
        **(_LORA if "adapter" in keys else {}),
        "datasets": [{"path": str(run / "rows.jsonl"), "ds_type": "json", "split": "train", "type": kind, **fields}],
        "dataset_prepared_path": str(run / "prepared"),
        "dataset_num_proc": 1,
        "output_dir": str(run / "out"),
        "sequence_len": length,
        "micro_batch_size": batch,
        "gradient_accumulation_steps": 1,
        "max_steps": 2,
        "learning_rate": 1e-4,
        "optimizer": "adamw_torch",
        "save_strategy": "no",
        **({} if "rl" in keys else {"pad_to_sequence_len": True}),
        **CPU_ONLY,
    }


def _peak_of_training(run: Path, config: Mapping[str, Any], demo: Path) -> int:
    """Train as `config` says in a process of its own; returns its peak, in bytes."""
    write_text(run / "rows.jsonl", _rows(demo, int(config["sequence_len"]), paired="rl" in config))
    write_text(run / "config.yml", yaml.safe_dump(dict(config)))
    command = [sys.executable, "-m", "axolotl.cli.main", "train", str(run / "config.yml"), "--launcher", "python"]
    small = [sys.executable, "-I", "-S", "-c", _SMALL_PARENT, str(run / "peak")]
    with (run / "log").open("wb") as log:
        done = subprocess.run(
            [*small, *command], cwd=run, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode != 0:
        raise PaftError("\n".join([f"A training failed; its log is {run / 'log'}.", *tail(run / "log")]))
    return int((run / "peak").read_text()) * (1 if sys.platform == "darwin" else 1024)


def _rows(demo: Path, length: int, paired: bool) -> str:
    """Rows that nearly fill `length` tokens; the longest that does not exceed it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo)
    question = [{"role": "user", "content": "1"}]
    words = next(
        count
        for count in range(length, 0, -1)
        if len(tokenizer.apply_chat_template([*question, _answer(count)], tokenize=True)["input_ids"]) <= length
    )
    row: dict[str, Any] = {"messages": [*question, _answer(words)]}
    if paired:
        row = {"question": question, "chosen": _answer(words), "rejected": _answer(words)}
    return "".join(json.dumps(row | {"row": number}) + "\n" for number in range(32))


def _answer(words: int) -> dict[str, str]:
    return {"role": "assistant", "content": " ".join(["1"] * words)}


@click.command()
@output_option
def command(output: Path | None) -> None:
    """Compare estimated memory with the peaks of real runs."""
    with tempfile.TemporaryDirectory() as folder:
        run_benchmark(measure(Path(folder)), output, PACKAGES, {"sequence_len": LENGTH})
