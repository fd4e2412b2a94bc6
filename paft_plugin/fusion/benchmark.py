"""What a merge of two adapters costs, beside plain `mergekit-yaml`: `python -m paft_plugin.fusion.benchmark [--quick]`.

Makes a random Qwen2 of 0.5 B parameters in bf16 with two adapters (r = 16, all linear layers) and merges them by TIES and
DARE-TIES, each time with `mergekit-yaml` and its correct flags and with `axolotl paft merge`, each in a process of its own.
Shows wall and CPU time, peak memory and the bytes of whole models written in between, and checks that both wrote the same
bits. Ours is run on half the layers, too: its memory must not grow with their number.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import click

from paft_plugin.files import write_json

T = TypeVar("T")

SCHEMA_VERSION = 1
METHODS = ("ties", "dare_ties")
SEED = 0
BAR = 0.2


@dataclass(frozen=True)
class Size:
    """Of a Qwen2."""

    layers: int
    vocabulary: int


FULL, QUICK = Size(layers=24, vocabulary=151936), Size(layers=4, vocabulary=8192)


@dataclass(frozen=True)
class Run:
    """One merge, in a process of its own."""

    tool: str
    method: str
    layers: int
    wall_s: float
    cpu_s: float
    peak_mb: float
    intermediate_mb: float
    """Whole models written for the merge alone."""


@click.command()
@click.option("--quick", is_flag=True, help="A sixth of the layers and a small vocabulary.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("fusion-benchmark.json"), show_default=True)
@click.option("--work", type=click.Path(path_type=Path), help="Where the models go. [a temporary folder]")
def main(quick: bool, output: Path, work: Path | None) -> None:
    """Run every merge, show the table, write the figures."""
    size = QUICK if quick else FULL
    with TemporaryDirectory(dir=work, prefix="paft-fusion-") as folder:
        runs, identical = measure(size, Path(folder))
    show(runs, identical)
    content = {"schema_version": SCHEMA_VERSION, "size": asdict(size), "runs": [asdict(run) for run in runs]}
    threads = os.environ.get("OMP_NUM_THREADS", "unset")
    write_json(output, {**content, "identical": identical, "cpus": os.cpu_count(), "OMP_NUM_THREADS": threads})


def measure(size: Size, folder: Path) -> tuple[list[Run], dict[str, bool]]:
    """All runs, and per method whether both tools wrote the same bits."""
    half = Size(size.layers // 2, size.vocabulary)
    for each in (size, half):
        _apart(make_models, each, folder / str(each.layers))
    runs, identical = [], {}
    for method in METHODS:
        whole = folder / str(size.layers)
        runs.append(plain(method, whole, size.layers))
        runs.append(ours(method, whole, size.layers))
        identical[method] = _apart(same_bits, whole / "plain", whole / "ours")
        runs.append(ours(method, folder / str(half.layers), half.layers))
        for out in folder.glob("*/*"):
            if out.name in ("plain", "ours"):
                shutil.rmtree(out)
    return runs, identical


def make_models(size: Size, folder: Path) -> None:
    """A base in bf16, two adapters on it, and a recipe for each method."""
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
    for branch in ("sft", "preference"):
        peft_model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
        with torch.no_grad():
            for name, parameter in peft_model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=1e-3)
        peft_model.save_pretrained(folder / branch)
        model = peft_model.unload()
    for method in METHODS:
        models = [
            {
                "model": {"model": {"path": str(base)}, "lora": {"path": str(folder / branch)}},
                "parameters": {"weight": 1.0, "density": 0.5},
            }
            for branch in ("sft", "preference")
        ]
        dtypes = {"dtype": "float32", "out_dtype": "bfloat16"}
        recipe = {"merge_method": method, "base_model": {"model": {"path": str(base)}}, "models": models, **dtypes}
        (folder / f"{method}.yml").write_text(yaml.safe_dump(recipe), encoding="utf-8")


def plain(method: str, folder: Path, layers: int) -> Run:
    """`mergekit-yaml` with an empty cache, in fp32."""
    cache = folder / "cache"
    flags = ["--lora-merge-cache", str(cache), "--lora-merge-dtype", "float32", "--random-seed", str(SEED), "--quiet"]
    command = [*_tool("mergekit-yaml"), str(folder / f"{method}.yml"), str(folder / "plain"), *flags]
    wall, cpu, peak = _timed(command)
    written = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
    shutil.rmtree(cache)
    return Run("mergekit-yaml", method, layers, wall, cpu, peak, written / 1e6)


def ours(method: str, folder: Path, layers: int) -> Run:
    """`axolotl paft merge`, which writes nothing but the result."""
    command = [*_tool("axolotl"), "paft", "merge", str(folder / f"{method}.yml"), str(folder / "ours"), "--quiet"]
    before = {entry.name for entry in folder.iterdir()}
    wall, cpu, peak = _timed(command)
    left = [folder / name for name in {entry.name for entry in folder.iterdir()} - before - {"ours"}]
    written = sum(file.stat().st_size for entry in left for file in (entry, *entry.rglob("*")) if file.is_file())
    return Run("axolotl paft merge", method, layers, wall, cpu, peak, written / 1e6)


def same_bits(one: Path, other: Path) -> bool:
    """Whether two models hold the same tensors, bit for bit but for the sign of a zero."""
    import torch

    from paft_plugin.deltas.store import open_model

    first, second = open_model(one), open_model(other)
    return first.names == second.names and all(
        first.dtype(name) == second.dtype(name) and torch.equal(first.tensor(name), second.tensor(name))
        for name in first.names
    )


def show(runs: list[Run], identical: dict[str, bool]) -> None:
    """The table, with ours as a share of plain."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Merging two adapters (bars: wall and peak ≤ {BAR} of plain, 0 bytes in between)")
    for column in (
        "method",
        "tool",
        "layers",
        "wall s",
        "CPU s",
        "peak MB",
        "in between MB",
        "wall",
        "peak",
        "same bits",
    ):
        table.add_column(column, justify="left" if column in ("method", "tool") else "right")
    for method in METHODS:
        base, *others = (run for run in runs if run.method == method)
        for run in (base, *others):
            full = run is not base and run.layers == base.layers
            shares = [f"{run.wall_s / base.wall_s:.2f}", f"{run.peak_mb / base.peak_mb:.2f}"] if full else ["", ""]
            figures = [f"{figure:.0f}" for figure in (run.wall_s, run.cpu_s, run.peak_mb, run.intermediate_mb)]
            same = str(identical[method]) if full else ""
            table.add_row(method, run.tool, str(run.layers), *figures, *shares, same)
    Console().print(table)


def _apart(function: Callable[..., T], *arguments: Any) -> T:
    """A call in a process of its own: a process that is started later begins with the peak memory of its parent."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _tool(name: str) -> list[str]:
    """A command of this very environment."""
    return [sys.executable, str(Path(sys.executable).with_name(name))]


def _timed(command: list[str]) -> tuple[float, float, float]:
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
    kilo = 1e6 if sys.platform == "darwin" else 1e3
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / kilo


if __name__ == "__main__":
    main()
