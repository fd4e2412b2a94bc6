"""What an inspection costs, beside merely reading the same files: `python -m paft_plugin.benchmarks inspection [--quick]`.

Makes a random Llama of 1.24 B parameters in bf16 (the shape of Llama-3.2-1B) with two whole models and two adapters (r = 16, all
linear layers) trained from it, and inspects them: one model, two models with their pair, two adapters with theirs. Each run is a
process of its own, and each is preceded by others that only read the same files: all bytes into one small buffer, in one thread
and in two ("read"), or every tensor into memory of its own ("load"); for adapters also by one that multiplies their factors
("materialise"). "Cold": before each run the system was told to drop the files from its cache, and asked whether it did; "warm":
they are in it. One inspection is of half the layers: memory must not grow with their number. Time and memory of 8.03 B parameters
are extrapolated from the entries.
"""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import click

from paft_plugin.benchmarks.harness import BenchmarkRow, Figure, apart, figure, megabytes, quotients, sized_command
from paft_plugin.files import ADAPTER_CONFIG, ADAPTER_FILE

PACKAGES = ("paft-plugin", "torch", "numba", "safetensors")
SEED = 0
RANK = 16
EIGHT_B = 8.03e9
LIMIT_S, LIMIT_MB, READING_SHARE = 600, 4000, 0.5
BUFFER = 1 << 23


@dataclass(frozen=True)
class LlamaSize:
    """Of a Llama with a tied head, under the names of its config."""

    num_hidden_layers: int
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    tie_word_embeddings: bool = True


FULL, QUICK = LlamaSize(16, 128256, 2048, 8192, 32, 8), LlamaSize(4, 8192, 512, 2048, 8, 2)


@dataclass(frozen=True)
class InspectionRun:
    """One inspection, or one reading."""

    wall_s: float
    cpu_s: float
    peak_mb: float
    load: float
    """Load average of the last minute, once it is done."""


CASES = {
    "one model": ["sft"],
    "two models and their pair": ["sft", "preference"],
    "two adapters and their pair": ["sft-lora", "preference-lora"],
}
STATES = ("cold", "warm")


def measure(size: LlamaSize, repeats: int, folder: Path) -> Iterator[BenchmarkRow]:
    """A row for each case and state of the cache; reading and inspecting take turns."""
    whole, half = folder / "whole", folder / "half"
    for each, where in ((size, whole), (replace(size, num_hidden_layers=size.num_hidden_layers // 2), half)):
        apart(make_llamas, each, where)
    for name, branches in CASES.items():
        folders = [whole / "base", *(whole / branch for branch in branches)]
        of_half = apart(inspect, [half / "base", *(half / branch for branch in branches)])
        for state in STATES:
            click.echo(f"{name}, {state} …", err=True)
            kinds = {what: each for what, each in KINDS.items() if what != "materialise" or "adapters" in name}
            runs: dict[str, list[InspectionRun]] = {what: [] for what in kinds}
            cached = []
            for _ in range(repeats):
                for what, (function, arguments) in kinds.items():
                    cached.append(_cache(folders, state))
                    runs[what].append(apart(function, folders, *arguments))
            yield _row(f"{name}, {state}", size, folders, runs, of_half, cached)


def _row(
    name: str,
    size: LlamaSize,
    folders: Sequence[Path],
    runs: dict[str, list[InspectionRun]],
    of_half: InspectionRun,
    cached: Sequence[float],
) -> BenchmarkRow:
    held = size == FULL
    parameters = (folders[0] / "model.safetensors").stat().st_size / 2
    gigabytes = sum(file.stat().st_size for folder in folders for file in folder.glob("*.safetensors")) / 1e9
    inspections = runs["inspect"]
    figures = [figure(f"wall, {what}", [run.wall_s for run in each], "s") for what, each in runs.items()]
    for what in [what for what in runs if what != "inspect"]:
        shares = quotients([run.wall_s for run in runs[what]], [run.wall_s for run in inspections])
        bar = READING_SHARE if held and what.startswith("read") else None
        figures.append(figure(f"rate / {what}", shares, "×", at_least=bar))
    figures.append(figure("rate, inspect", [gigabytes / run.wall_s for run in inspections], "GB/s"))
    figures.append(figure("CPU, inspect", [run.cpu_s for run in inspections], "s"))
    times = [run.wall_s * EIGHT_B / parameters for run in inspections]
    figures.append(figure("wall, extrapolated to 8 B", times, "s", LIMIT_S if held else None))
    peaks = [run.peak_mb for run in inspections]
    figures.append(figure("peak memory", peaks, "MB", LIMIT_MB if held else None))
    growth = median(peaks) / of_half.peak_mb
    figures.append(Figure("peak, all / half the layers", growth, "×", at_most=1.1 if held else None))
    timings = {what: [run.wall_s for run in each] for what, each in runs.items()}
    loads = [run.load for each in runs.values() for run in each]
    note = (
        f"{parameters / 1e9:.2f} B parameters, bf16, {len(folders) - 1} deltas, {gigabytes:.2f} GB of files; "
        f"{min(cached):.0%} to {max(cached):.0%} of them cached before a run; load average {min(loads):.1f} to {max(loads):.1f}, "
        f"after inspecting {', '.join(f'{run.load:.1f}' for run in inspections)}"
    )
    return BenchmarkRow(name, figures, timings, note)


def inspect(folders: Sequence[Path]) -> InspectionRun:
    """The base's folder and its branches'; imports and start-up are not in the time, compiling is."""
    from paft_plugin.inspection.inspect import inspect_deltas
    from paft_plugin.machine import reuse_freed_memory

    reuse_freed_memory()
    base, *branches = folders
    return _timed_work(lambda: inspect_deltas(base, {branch.name: branch for branch in branches}))


def read(folders: Sequence[Path], threads: int) -> InspectionRun:
    """All bytes of the weights, file by file into one buffer for each thread, each file in as many parts as threads."""
    files = [file for folder in folders for file in sorted(folder.glob("*.safetensors"))]

    def part(index: int) -> None:
        buffer = bytearray(BUFFER)
        for file in files:
            size = file.stat().st_size
            with file.open("rb", buffering=0) as stream:
                stream.seek(size * index // threads)
                left = size * (index + 1) // threads - stream.tell()
                while left > 0:
                    left -= stream.readinto(memoryview(buffer)[: min(left, BUFFER)])

    return _timed_work(lambda: _side_by_side(part, range(threads), threads))


def load(folders: Sequence[Path], threads: int) -> InspectionRun:
    """Every tensor in memory of its own, as any program has to that computes with it; one after the other in each thread."""
    from paft_plugin.deltas.store import TensorStore

    stores = [TensorStore(folder, sorted(folder.glob("*.safetensors"))) for folder in folders]
    tensors = [(store, name) for store in stores for name in store.names]
    return _timed_work(lambda: _side_by_side(lambda each: each[0].tensor(each[1]).clone().numel(), tensors, threads))


def materialise(folders: Sequence[Path], threads: int) -> InspectionRun:
    """Every tensor of every delta in fp32, without a look at any: what an adapter's delta costs before it can be measured."""
    import torch

    from paft_plugin.deltas.delta import open_delta
    from paft_plugin.machine import reuse_freed_memory

    reuse_freed_memory()
    torch.set_num_threads(1)
    base, *branches = folders
    deltas = [open_delta(base, branch) for branch in branches]
    tensors = [(delta, name) for delta in deltas for name in delta.names]
    return _timed_work(lambda: _side_by_side(lambda each: each[0].one(each[1]).numel(), tensors, threads))


KINDS: dict[str, tuple[Callable[..., InspectionRun], tuple[int, ...]]] = {
    "read, 1 thread": (read, (1,)),
    "read, 2 threads": (read, (2,)),
    "load": (load, (2,)),
    "materialise": (materialise, (2,)),
    "inspect": (inspect, ()),
}


def _side_by_side(work: Callable[[Any], object], each: Iterable[Any], threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, each))


def _timed_work(work: Callable[[], Any]) -> InspectionRun:
    start, before = time.perf_counter(), os.times()
    work()
    wall, after = time.perf_counter() - start, os.times()
    peak = megabytes(resource.getrusage(resource.RUSAGE_SELF))
    return InspectionRun(wall, after.user + after.system - before.user - before.system, peak, os.getloadavg()[0])


def _cache(folders: Sequence[Path], state: str) -> float:
    """Have the system hold the files in memory, or drop them; returns the share of their pages that it then holds."""
    files = [file for folder in folders for file in sorted(folder.glob("*.safetensors"))]
    if state == "cold":
        for file in files:
            handle = os.open(file, os.O_RDONLY)
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)
    elif apart(cached_share, files) < 1:
        apart(read, folders, 1)
    return apart(cached_share, files)


def cached_share(files: Sequence[Path]) -> float:
    """Of the pages of some files, those in the system's cache (Linux)."""
    import ctypes

    import numpy as np

    library = ctypes.CDLL(None, use_errno=True)
    held, pages = 0, 0
    for file in files:
        mapped = np.memmap(file, np.uint8, "r")
        states = np.zeros(-(-mapped.size // os.sysconf("SC_PAGE_SIZE")), np.uint8)
        address, length = ctypes.c_void_p(mapped.ctypes.data), ctypes.c_size_t(mapped.size)
        if library.mincore(address, length, ctypes.c_void_p(states.ctypes.data)):
            raise OSError(ctypes.get_errno(), "mincore")
        held, pages = held + int((states & 1).sum()), pages + states.size
    return held / pages


def make_llamas(size: LlamaSize, folder: Path) -> None:
    """A base, two models with all weights moved by about 1e-4 (many round back), and two adapters."""
    import torch
    from safetensors.torch import save_file

    from paft_plugin.pipeline.estimate.shapes import decoder_shapes, is_linear

    shapes = decoder_shapes(asdict(size))
    torch.manual_seed(SEED)
    # Numbers are drawn once and used again from different places on: drawing them all would take longer than the benchmark.
    pool = torch.randn(1 << 24)

    def drawn(shape: tuple[int, ...], std: float) -> torch.Tensor:
        entries = torch.Size(shape).numel()
        start = int(torch.randint(1 << 23, ()))
        repeated = pool[start:].repeat(-(-entries // (len(pool) - start)))[:entries]
        return repeated.reshape(shape) * std

    base = {name: drawn(shape, 0.02).bfloat16() for name, shape in shapes.items()}
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": True}
    for model, std in (("base", 0.0), ("sft", 1e-4), ("preference", 3e-5)):
        weights = base
        if std:
            weights = {name: (tensor + drawn(tuple(tensor.shape), std)).bfloat16() for name, tensor in base.items()}
        (folder / model).mkdir(parents=True)
        save_file(weights, folder / model / "model.safetensors")
        (folder / model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for adapter in ("sft-lora", "preference-lora"):
        factors = {}
        for name, (rows, columns) in ((name, shape) for name, shape in shapes.items() if is_linear(name, shape)):
            key = f"base_model.model.{name.removesuffix('weight')}lora_"
            factors[f"{key}A.weight"] = drawn((RANK, columns), 0.02).bfloat16()
            factors[f"{key}B.weight"] = drawn((rows, RANK), 1e-3).bfloat16()
        (folder / adapter).mkdir()
        save_file(factors, folder / adapter / ADAPTER_FILE)
        settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "base_model_name_or_path": None}
        (folder / adapter / ADAPTER_CONFIG).write_text(json.dumps(settings), encoding="utf-8")


HELP = "Measure what an inspection costs, beside merely reading the same files."
command = sized_command(HELP, measure, FULL, QUICK, PACKAGES, repeats=3)
