"""What a merge of two adapters costs, beside plain `mergekit-yaml`: `python -m paft_plugin.benchmarks fusion [--quick]`.

Makes a random Qwen2 of 0.5 B parameters in bf16 with two adapters (r = 16, all linear layers) and merges them by TIES and
DARE-TIES, each time with `mergekit-yaml` and its correct flags and with `axolotl paft merge`, each in a process of its own.
Shows wall and CPU time, peak memory and the bytes of whole models written in between, and checks that both wrote the same
bits. Ours is run on half the layers, too: its memory must not grow with their number. And ours is run on eight adapters beside
two: that may take four times as long, and no more memory.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import click

from paft_plugin.benchmarks.harness import BenchmarkRow, Figure, apart, figure, megabytes, quotients, sized_command

PACKAGES = ("paft-plugin", "mergekit", "torch", "transformers", "peft")
METHODS = ("ties", "dare_ties")
SEED = 0
BARS = {("wall", "s"): 0.2, ("cpu", "s"): None, ("peak", "MB"): 0.2, ("between", "MB"): 0.0}
"""What is measured of a merge, in which unit → how much of plain mergekit's ours may take."""
BRANCHES = ("sft", "preference", "math", "code", "taste", "tools", "safety", "style")
"""The adapters; the first two alone are what most is measured of."""
MANY = "eight branches"
MANY_BARS = {("wall", "s"): 4.0, ("cpu", "s"): None, ("peak", "MB"): 1.1}
"""How much more eight branches may take than two."""


@dataclass(frozen=True)
class Qwen2Size:
    """How much of a Qwen2-0.5B is made."""

    layers: int
    vocabulary: int


FULL, QUICK = Qwen2Size(layers=24, vocabulary=151936), Qwen2Size(layers=4, vocabulary=8192)


@dataclass(frozen=True)
class MergeRun:
    """One merge, in a process of its own."""

    wall_s: float
    cpu_s: float
    peak_mb: float
    between_mb: float
    """Whole models written for the merge alone."""


def measure(size: Qwen2Size, repeats: int, folder: Path) -> Iterator[BenchmarkRow]:
    """A row for each method, in which both tools take turns, and one for each of eight branches beside two."""
    whole, half = folder / "whole", folder / "half"
    apart(make_qwen2_with_adapters, size, whole, METHODS, BRANCHES)
    apart(make_qwen2_with_adapters, Qwen2Size(size.layers // 2, size.vocabulary), half)
    for method in METHODS:
        click.echo(f"{method} …", err=True)
        plain_runs, our_runs, same = [], [], True
        for _ in range(repeats):
            plain_runs.append(plain(method, whole))
            our_runs.append(ours(method, whole))
            same &= apart(same_bits, whole / "plain", whole / "ours")
            for made in ("plain", "ours"):
                shutil.rmtree(whole / made)
        of_half = ours(method, half)
        shutil.rmtree(half / "ours")
        yield _row(method, size, plain_runs, our_runs, of_half, same)
    yield from measure_many(whole, repeats, held=size == FULL)


def measure_many(folder: Path, repeats: int, held: bool) -> Iterator[BenchmarkRow]:
    """What a merge of all branches in a folder takes beside one of the first two."""
    for method in METHODS:
        click.echo(f"{method}, {MANY} …", err=True)
        few: list[MergeRun] = []
        many: list[MergeRun] = []
        for _ in range(repeats):
            for recipe, runs in ((method, few), (f"{method}, {MANY}", many)):
                runs.append(ours(recipe, folder))
                shutil.rmtree(folder / "ours")
        figures, timings = _compared(MANY_BARS, held, two=few, eight=many)
        note = f"axolotl paft merge of {len(BRANCHES)} adapters beside that of two of them, as above"
        yield BenchmarkRow(f"{method}, {MANY}", figures, timings, note)


def _row(
    method: str, size: Qwen2Size, plain_runs: list[MergeRun], our_runs: list[MergeRun], of_half: MergeRun, same: bool
) -> BenchmarkRow:
    held = size == FULL  # on a small model, imports are most of either
    figures, timings = _compared(BARS, held, plain=plain_runs, ours=our_runs)
    growth = median(run.peak_mb for run in our_runs) / of_half.peak_mb
    figures.append(Figure("peak, ours, all / half the layers", growth, "×", at_most=1.05 if held else None))
    figures.append(Figure("the same bits", float(same), "", at_least=1))
    note = (
        f"Qwen2, {size.layers} layers, bf16, two adapters r=16 on all linear layers, density 0.5; plain: mergekit-yaml; "
        "between: bytes of models on disk that only the merge needs"
    )
    return BenchmarkRow(method, figures, timings, note)


def _compared(
    bars: Mapping[tuple[str, str], float | None], held: bool, **runs: list[MergeRun]
) -> tuple[list[Figure], dict[str, list[float]]]:
    """The figures and timings of two kinds of runs, and how much more the second takes than the first."""
    figures: list[Figure] = []
    timings: dict[str, list[float]] = {}
    for (name, unit), bar in bars.items():
        samples = {what: [getattr(run, f"{name}_{unit.lower()}") for run in each] for what, each in runs.items()}
        (one, first), (other, second) = samples.items()
        figures += [figure(f"{name}, {what}", each, unit) for what, each in samples.items()]
        figures.append(figure(f"{name}, {other} / {one}", quotients(second, first), "×", bar if held else None))
        timings |= {f"{name}, {what}": each for what, each in samples.items()}
    return figures, timings


def make_qwen2_with_adapters(
    size: Qwen2Size, folder: Path, methods: Sequence[str] = METHODS, branches: Sequence[str] = BRANCHES[:2]
) -> None:
    """A base in bf16, adapters on it, and for each method a recipe of the first two, and one of all if there are more."""
    import torch
    import yaml
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = {"hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14, "num_key_value_heads": 2}
    torch.manual_seed(SEED)
    config = Qwen2Config(
        vocab_size=size.vocabulary, num_hidden_layers=size.layers, tie_word_embeddings=True, dtype="bfloat16", **shape
    )
    model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    base = folder / "base"
    model.save_pretrained(base)
    model.name_or_path = str(base)
    for branch in branches:
        peft_model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
        with torch.no_grad():
            for name, parameter in peft_model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=1e-3)
        peft_model.save_pretrained(folder / branch)
        model = peft_model.unload()
    names = {"": branches[:2], f", {MANY}": branches} if len(branches) > 2 else {"": branches}
    for method, (suffix, merged) in product(methods, names.items()):
        loras = [{"model": {"path": str(base)}, "lora": {"path": str(folder / name)}} for name in merged]
        models = [{"model": lora, "parameters": {"weight": 1.0, "density": 0.5}} for lora in loras]
        dtypes = {"dtype": "float32", "out_dtype": "bfloat16"}
        recipe = {"merge_method": method, "base_model": {"model": {"path": str(base)}}, "models": models, **dtypes}
        (folder / f"{method}{suffix}.yml").write_text(yaml.safe_dump(recipe), encoding="utf-8")


def plain(method: str, folder: Path) -> MergeRun:
    """`mergekit-yaml` with an empty cache, in fp32."""
    cache = folder / "cache"
    flags = ["--lora-merge-cache", str(cache), "--lora-merge-dtype", "float32", "--random-seed", str(SEED), "--quiet"]
    command = [*_tool("mergekit-yaml"), str(folder / f"{method}.yml"), str(folder / "plain"), *flags]
    wall, cpu, peak = _timed_process(command)
    written = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
    shutil.rmtree(cache)
    return MergeRun(wall, cpu, peak, written / 1e6)


def ours(method: str, folder: Path) -> MergeRun:
    """`axolotl paft merge`, which writes nothing but the result."""
    command = [*_tool("axolotl"), "paft", "merge", str(folder / f"{method}.yml"), str(folder / "ours"), "--quiet"]
    before = {entry.name for entry in folder.iterdir()}
    wall, cpu, peak = _timed_process(command)
    left = [folder / name for name in {entry.name for entry in folder.iterdir()} - before - {"ours"}]
    written = sum(file.stat().st_size for entry in left for file in (entry, *entry.rglob("*")) if file.is_file())
    return MergeRun(wall, cpu, peak, written / 1e6)


def same_bits(one: Path, other: Path) -> bool:
    """Whether two models hold the same tensors, bit for bit but for the sign of a zero."""
    import torch

    from paft_plugin.deltas.store import open_model

    first, second = open_model(one), open_model(other)
    return first.names == second.names and all(
        first.dtype(name) == second.dtype(name) and torch.equal(first.tensor(name), second.tensor(name))
        for name in first.names
    )


def _tool(name: str) -> list[str]:
    """A command of this very environment."""
    return [sys.executable, str(Path(sys.executable).with_name(name))]


def _timed_process(command: list[str]) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak memory in MB of a process; its output is shown only if it fails."""
    with TemporaryDirectory() as folder, (Path(folder) / "log").open("w+b") as log:
        start = time.perf_counter()
        outputs = [(os.POSIX_SPAWN_DUP2, log.fileno(), stream) for stream in (1, 2)]
        process = os.posix_spawn(command[0], command, os.environ, file_actions=outputs)
        _, status, usage = os.wait4(process, 0)
        wall = time.perf_counter() - start
        if code := os.waitstatus_to_exitcode(status):
            log.seek(0)
            raise click.ClickException(f"{' '.join(command)} ended with {code}:\n{log.read().decode()[-2000:]}")
    return wall, usage.ru_utime + usage.ru_stime, megabytes(usage)


HELP = "Measure what a merge of two adapters costs, beside plain mergekit-yaml."
command = sized_command(HELP, measure, FULL, QUICK, PACKAGES, repeats=1)
