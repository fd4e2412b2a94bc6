"""What only a GPU can show, within minutes: `python -m paft_plugin.benchmarks gpu [--only ROW] [--device cpu]`.

Every row runs in a process of its own with a time limit; one that fails says why, and the others run on. It takes torch, Triton,
transformers, PEFT (with accelerate) and safetensors, and of the rest click, rich, pydantic, PyYAML and nvidia-ml-py; mergekit for
merging and bitsandbytes for QLoRA, or these rows say that they are missing. axolotl, TRL, datasets and lm-eval are not imported.

`--device cpu` does all of it with tiny models, the kernels in Triton's interpreter: it shows that every row runs, not how fast.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch
from peft import prepare_model_for_kbit_training
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import paft_plugin.demo
from paft_plugin.benchmarks.fusion import SEED, Qwen2Size, make_qwen2_with_adapters
from paft_plugin.benchmarks.gpu_kernels import ODD_SHAPES, compare_kernels, without_kernels
from paft_plugin.benchmarks.harness import BenchmarkRow, Figure, apart, figure, output_option, run_benchmark
from paft_plugin.benchmarks.penalty import (
    RANK,
    SUBGRADIENT,
    Llama,
    Scale,
    StepTimes,
    now,
    parameters_of,
    random_llama,
    resident,
    time_steps,
    tokens_of,
    with_lora,
)
from paft_plugin.errors import one_line
from paft_plugin.evaluation.candidates import Candidate, load_model
from paft_plugin.files import read_json, write_bytes, write_json
from paft_plugin.penalty.settings import ReferencePlace
from paft_plugin.pipeline.estimate.memory import estimate_memory
from paft_plugin.runner.devices import VISIBLE, Device, find_devices
from paft_plugin.runner.local import LocalExecutor
from paft_plugin.runner.scheduler import run_stages
from paft_plugin.runner.stages import Resources, Stage

PACKAGES = (
    "paft-plugin",
    "torch",
    "triton",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
    "mergekit",
    "bitsandbytes",
)
MINUTES = 4.5  # for all rows, so that tests/gpu has the rest of six
ROW_SECONDS = 100.0
LEAST_SECONDS = 15.0  # a process and its imports
SPARED = (1.0, 1.3)  # estimated memory by the peak: never too little, and not much too much
ANSWER_TOKENS, CHOICES = 16, 4
_STAGE = "import sys; from paft_plugin.benchmarks.gpu import train_as_stage; train_as_stage(*sys.argv[1:])"


@dataclass(frozen=True)
class GpuSize:
    """How large everything is, and where."""

    device: str
    scale: Scale
    """Of the steps of a LoRA; its layer set is what kernels are timed on."""
    accumulation: int
    """Of such batches in a step of full fine-tuning, where a step is long beside a copy of the model."""
    shapes: tuple[tuple[int, int, int], ...]
    """Rows, rank and columns of the products that kernels are tried on."""
    shared: Scale
    """Of each of the two stages that share the device."""
    merged: Qwen2Size
    scored: Scale
    """Its `sequences` questions are asked."""
    held: bool
    """Whether figures have bars."""

    def bar(self, value: float) -> float | None:
        """A bar, if this is a size at which it is held."""
        return value if self.held else None

    @property
    def training(self) -> dict[str, Any]:
        """How a Trainer trains here."""
        return {"use_cpu": self.device == "cpu", "bf16": True}


_LLAMA = Scale(hidden=2048, intermediate=5632, layers=22, sequences=4, sequence_length=4096, pairs=4, repeats=9)
FULL = GpuSize(
    device="cuda",
    scale=_LLAMA,
    accumulation=4,
    shapes=(*ODD_SHAPES, (1000, 16, 4097), (4096, 64, 1024), (14336, 16, 4096)),
    shared=replace(_LLAMA, layers=8, sequences=2, pairs=40),
    merged=Qwen2Size(layers=8, vocabulary=151936),
    scored=replace(_LLAMA, layers=8, sequences=16, sequence_length=512),
    held=True,
)
_TINY = Scale(hidden=64, intermediate=96, layers=1, vocabulary=600, sequences=2, sequence_length=8, pairs=1, repeats=1)
_TINY = replace(_TINY, layer_set=((64, 96),))
QUICK = GpuSize(
    device="cpu",
    scale=_TINY,
    accumulation=2,
    shapes=ODD_SHAPES[1:4],
    shared=_TINY,
    merged=Qwen2Size(layers=1, vocabulary=64),
    scored=replace(_TINY, sequence_length=ANSWER_TOKENS + 8),
    held=False,
)


# --- the penalty ----------------------------------------------------------------------------------------------------------


def kernels(size: GpuSize) -> BenchmarkRow:
    """The Triton kernels against the same passes in torch."""
    return compare_kernels(size.device, size.shapes, size.scale.layer_set, size.scale.repeats)


def lora_step(size: GpuSize) -> BenchmarkRow:
    """Steps of a LoRA on a model in bf16."""
    peak, scale = PeakMemory(size.device), size.scale
    model = random_llama(scale, lora=True, device=size.device, dtype=torch.bfloat16)
    times = time_steps(model, scale, **size.training)
    memory = _memory(size, model, {"adapter": "lora"}, peak)
    fresh = random_llama(replace(scale, sequence_length=8), lora=True, device=size.device, dtype=torch.bfloat16)
    with without_kernels():
        by_torch = time_steps(fresh, replace(scale, sequence_length=8), alternate=False, **size.training)
    slower = figure("penalty without Triton", by_torch.penalty, "s")
    return _step_row("lora step", size, times, 1.01, model, [*memory, slower])


def qlora_step(size: GpuSize) -> BenchmarkRow:
    """The same on a base in 4 bits."""
    if find_spec("bitsandbytes") is None:
        return BenchmarkRow("qlora step", [], note="not measured: bitsandbytes is not installed")
    peak = PeakMemory(size.device)
    packed = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    with TemporaryDirectory() as folder:
        random_llama(size.scale, lora=False, device=size.device, dtype=torch.bfloat16).save_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=packed, device_map={"": size.device}, dtype=torch.bfloat16
        )
    model = with_lora(prepare_model_for_kbit_training(model, use_gradient_checkpointing=False))
    times = time_steps(model, size.scale, **size.training)
    memory = _memory(size, model, {"adapter": "qlora", "load_in_4bit": True}, peak)
    return _step_row("qlora step", size, times, 1.01, model, memory)


def full_step(place: ReferencePlace, at_most: float, size: GpuSize) -> BenchmarkRow:
    """Steps of full fine-tuning in bf16, θ_pre at `place`."""
    peak = PeakMemory(size.device)
    model = random_llama(size.scale, lora=False, device=size.device, dtype=torch.bfloat16)
    whole = replace(size.scale, sequences=size.scale.sequences * size.accumulation)
    settings = replace(SUBGRADIENT, reference=place)
    times = time_steps(model, whole, settings, gradient_accumulation_steps=size.accumulation, **size.training)
    memory = _memory(size, model, {"paft_reference": place}, peak)
    return _step_row(f"full step, θ_pre: {place}", replace(size, scale=whole), times, at_most, model, memory)


def _step_row(
    name: str, size: GpuSize, times: StepTimes, at_most: float, model: Llama, more: Sequence[Figure]
) -> BenchmarkRow:
    figures = [replace(one, at_most=one.at_most and size.bar(at_most)) for one in times.ratios(at_most)]
    note = (
        f"{parameters_of(model)}, bf16, {tokens_of(size.scale)}, logged every step; LoRA: r={RANK} on all linear layers"
    )
    return BenchmarkRow(name, [*figures, figure("penalty", times.penalty, "s"), *more], times.timings(), note)


# --- memory ---------------------------------------------------------------------------------------------------------------


class PeakMemory:
    """The most that this process takes of a device, with what CUDA itself takes; to be made before CUDA is touched."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._others = in_use(device)

    def bytes(self) -> int:
        """Until now."""
        if self._device == "cpu":
            return resident("VmHWM")
        beside = in_use(self._device) - self._others - torch.cuda.memory_reserved()
        return beside + torch.cuda.max_memory_reserved()


def in_use(device: str) -> int:
    """Bytes of the first GPU, or of main memory, that anybody holds."""
    if device != "cpu":
        return find_devices()[0].used
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    total, available = (int(lines[key].split()[0]) for key in ("MemTotal", "MemAvailable"))
    return 1024 * (total - available)


@contextmanager
def most_in_use(device: str) -> Iterator[list[int]]:
    """Fills the list with what is in use beyond what was at first, over and over."""
    samples, over, before = [0], threading.Event(), in_use(device)

    def look() -> None:
        while not over.wait(0.2):
            samples.append(in_use(device) - before)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


def _memory(size: GpuSize, model: Llama, keys: Mapping[str, Any], peak: PeakMemory) -> list[Figure]:
    """Beside the peak of the training that `keys` describe, its estimate."""
    taken, estimate = peak.bytes(), _estimate(size.scale, model, keys, size.device)
    allocated = (
        [] if size.device == "cpu" else [Figure("allocated by torch", torch.cuda.max_memory_allocated() / 1e9, "GB")]
    )
    least, most = map(size.bar, SPARED)
    return [
        Figure("peak memory", taken / 1e9, "GB"),
        *allocated,
        Figure("estimated memory", estimate / 1e9, "GB"),
        Figure("estimate / peak", estimate / taken, "×", at_most=most, at_least=least),
    ]


def _estimate(scale: Scale, model: Llama, keys: Mapping[str, Any], device: str) -> int:
    """Bytes, as `axolotl paft run` would place this training; `scale` is a micro-batch."""
    config = {
        "bf16": True,
        "micro_batch_size": scale.sequences,
        "sequence_len": scale.sequence_length,
        "optimizer": "adamw_torch_fused",
        "paft_l1_lambda": SUBGRADIENT.strength,
        "lora_r": RANK,
        "lora_target_linear": True,
        **keys,
    }
    with TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        return estimate_memory(config, Path(folder), cpu=device == "cpu").total


def two_stages(size: GpuSize) -> BenchmarkRow:
    """A training alone, and two of them that the local executor puts on one device because their estimates fit."""
    devices = [] if size.device == "cpu" else find_devices()[:1]
    model = random_llama(size.shared, lora=False, device="meta")
    estimate = _estimate(size.shared, model, {"adapter": "lora"}, size.device)
    with TemporaryDirectory() as folder:
        (alone,) = _run_stages(Path(folder) / "alone", size, estimate, ("one",), devices)
        with most_in_use(size.device) as samples:
            both = _run_stages(Path(folder) / "both", size, estimate, ("one", "two"), devices)
    begins, ends = ([stage[key] for stage in both] for key in ("begin", "end"))
    at_once = (min(ends) - max(begins)) / min(stage["end"] - stage["begin"] for stage in both)
    single = alone["end"] - alone["begin"]
    return BenchmarkRow(
        "two stages on one device",
        [
            Figure("one alone", single, "s"),
            Figure("two at once", max(ends) - min(begins), "s"),
            Figure("two / twice one", (max(ends) - min(begins)) / (2 * single), "×"),
            Figure("time that both share", at_once, "", at_least=size.bar(0.5)),
            Figure("peak of the device", max(samples) / 1e9, "GB"),
            Figure("peak / both estimates", max(samples) / (2 * estimate), "×", at_most=size.bar(1)),
        ],
        note=f"LoRA, {size.shared.layers} layers, {tokens_of(size.shared)}, by the scheduler and executor of `axolotl paft run`",
    )


def _run_stages(
    run_dir: Path, size: GpuSize, estimate: int, names: Sequence[str], devices: Sequence[Device]
) -> list[dict[str, float]]:
    """When each stage began and ended."""
    resources = Resources(devices=1, device_memory=estimate)
    command = (sys.executable, "-c", _STAGE, size.device, str(int(size.held)))
    stages = [Stage(name, name, (*command, name), Path(name), resources=resources) for name in names]
    # The stages' own folder is where Python looks otherwise.
    path = {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    run_stages(stages, run_dir, LocalExecutor(devices, workers=2), variables=path)
    return [read_json(run_dir / name / "stage.json") for name in names]


def train_as_stage(device: str, held: str, folder: str) -> None:
    """A short training that writes when it began and ended."""
    size = replace(FULL if int(held) else QUICK, device=device)
    model = random_llama(size.shared, lora=True, device=device, dtype=torch.bfloat16)
    begin = time.time()
    time_steps(model, size.shared, alternate=False, **size.training)
    write_json(Path(folder) / "stage.json", {"begin": begin, "end": time.time()})


# --- merging and scoring --------------------------------------------------------------------------------------------------


def merge(size: GpuSize) -> BenchmarkRow:
    """A merge of two adapters on the device and on the CPU: the same tensors?"""
    if find_spec("mergekit") is None:
        return BenchmarkRow("merge", [], note="not measured: mergekit is not installed")
    figures: list[Figure] = []
    torch.ones(8, 8, device=size.device) @ torch.ones(
        8, 8, device=size.device
    )  # what CUDA loads first is no merge's time
    with TemporaryDirectory() as folder:
        make_qwen2_with_adapters(size.merged, Path(folder), tuple(MERGES))
        for method, share in MERGES.items():
            recipe = Path(folder) / f"{method}.yml"
            on_cpu, cpu_seconds = _merged(recipe, "cpu")
            on_device, seconds = _merged(recipe, size.device)
            apart = [ulps(on_cpu[name], on_device[name]) for name in on_cpu]
            entries = sum(each.numel() for each in apart)
            figures += [
                Figure(f"{method}: CPU", cpu_seconds, "s"),
                Figure(f"{method}: device", seconds, "s"),
                Figure(f"{method}: CPU / device", cpu_seconds / seconds, "×"),
                Figure(f"{method}: other bits / 10⁶", _count(apart, 0) / entries * 1e6, "", at_most=share),
                Figure(f"{method}: > 1 ulp / 10⁶", _count(apart, 1) / entries * 1e6, "", at_most=share),
            ]
    return BenchmarkRow(
        "merge",
        figures,
        note=f"Qwen2, {size.merged.layers} layers, bf16, two adapters r=16, in memory. task_arithmetic adds entry by entry: the "
        "same bits; TIES may keep another of equal magnitudes at its threshold. What draws at random draws otherwise on a GPU",
    )


MERGES = {"task_arithmetic": 0.0, "ties": 100.0}
"""Method → how many entries of a million may come out otherwise on another device."""


def _merged(recipe: Path, device: str) -> tuple[dict[str, Tensor], float]:
    from paft_plugin.fusion.merge import open_fusion

    start = now()
    tensors = dict(open_fusion(recipe, SEED, device).tensors())
    return tensors, now() - start


def ulps(one: Tensor, other: Tensor) -> Tensor:
    """How many representable numbers lie between the entries of two tensors in bf16."""
    places = [tensor.contiguous().view(torch.int16).int() for tensor in (one, other)]
    # Negative numbers count downwards in two's complement from −0, so that both zeros are one place.
    first, second = (torch.where(place < 0, -(place & 0x7FFF), place) for place in places)
    return (first - second).abs()


def _count(distances: Sequence[Tensor], beyond: int) -> int:
    return sum(int((each > beyond).sum()) for each in distances)


def scoring(size: GpuSize) -> BenchmarkRow:
    """Log-likelihoods of answers in bf16 beside those in fp32, of a model loaded as evaluation loads it."""
    scale = size.scored
    demo = Path(paft_plugin.demo.__file__).parent / "base"
    with TemporaryDirectory() as folder:
        random_llama(scale, lora=False, device=size.device).save_pretrained(folder)
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            write_bytes(Path(folder) / file, (demo / file).read_bytes())
        shape = (scale.sequences, CHOICES, scale.sequence_length)
        rows = torch.randint(0, scale.vocabulary, shape, generator=torch.Generator().manual_seed(0))
        rows[..., :-ANSWER_TOKENS] = rows[:, :1, :-ANSWER_TOKENS]  # one question, several answers
        scores, seconds = {}, {}
        for dtype in ("float32", "bfloat16"):
            model, _ = load_model(Candidate("random", Path(folder)), size.device, dtype, chat_template=True)
            _log_likelihoods(model, rows[:1])
            start = now()
            scores[dtype] = _log_likelihoods(model, rows)
            seconds[dtype] = now() - start
            del model
    exact, rounded = scores["float32"], scores["bfloat16"]
    alike = (exact.argmax(1) == rounded.argmax(1)).double().mean().item()
    equal = sum(CHOICES - len(set(row.tolist())) for row in rounded)
    return BenchmarkRow(
        "scoring in bf16",
        [
            *(Figure(f"answers a second, {dtype}", exact.numel() / taken, "") for dtype, taken in seconds.items()),
            Figure("largest difference", (exact - rounded).abs().max().item(), "nats"),
            Figure("answers that tie", equal, "", at_most=0),
            Figure("same answer chosen", alike, ""),
        ],
        note=f"random weights, {ANSWER_TOKENS} of {scale.sequence_length} tokens an answer, {CHOICES} to a question; loaded as "
        "`evaluation` does, then forward and fp32 log-softmax as lm-eval's HFLM does them: lm-eval itself does not run here",
    )


@torch.no_grad()
def _log_likelihoods(model: Llama, rows: Tensor) -> Tensor:
    """Of the last tokens of each answer, ``[questions, choices]``, for rows ``[questions, choices, tokens]``."""
    found = []
    for question in rows.to(model.device):
        logits = model(input_ids=question).logits[:, -ANSWER_TOKENS - 1 : -1]
        likely = torch.log_softmax(logits, -1, dtype=torch.float32)
        found.append(likely.gather(-1, question[:, -ANSWER_TOKENS:, None]).sum((1, 2)))
    return torch.stack(found).cpu()


# --- the command ----------------------------------------------------------------------------------------------------------

ROWS: dict[str, Callable[[GpuSize], BenchmarkRow]] = {
    "kernels": kernels,
    "lora step": lora_step,
    "full step, θ_pre: device": partial(full_step, "device", 1.05),
    "full step, θ_pre: host": partial(full_step, "host", 1.15),
    "merge": merge,
    "qlora step": qlora_step,
    "two stages on one device": two_stages,
    "scoring in bf16": scoring,
}


def measure(names: Sequence[str], size: GpuSize, minutes: float) -> Iterator[BenchmarkRow]:
    """The rows of these names, as far as there is time."""
    end = time.monotonic() + 60 * minutes
    # On a machine with several GPUs, a Trainer would train on all of them.
    first = {VISIBLE: os.environ.get(VISIBLE, "0").partition(",")[0]}
    environment = {"TRITON_INTERPRET": "1"} if size.device == "cpu" else first
    for name in names:
        left = end - time.monotonic()
        if left < LEAST_SECONDS:
            yield BenchmarkRow(name, [], note=f"not started: the {minutes:g} minutes are over", failed=True)
            continue
        click.echo(f"{name} …", err=True)
        seconds = min(left, ROW_SECONDS) if size.held else left  # tiny models are for slow machines, too
        try:
            yield apart(one_row, name, size, seconds, environment=environment)
        except BrokenProcessPool:
            why = f"its process died, or took more than {seconds:.0f} s and was ended; stderr says where"
            yield BenchmarkRow(name, [], note=f"failed: {why}", failed=True)


def one_row(name: str, size: GpuSize, seconds: float) -> BenchmarkRow:
    """A row, or why there is none; ends this process if that takes longer than `seconds`."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=2)  # stderr, whatever stands in for it
    start = time.monotonic()
    try:
        row = ROWS[name](size)
    except Exception as error:  # anything that a driver, a compiler or a library raises is this row's result
        traceback.print_exc()
        return BenchmarkRow(name, [], note=f"failed: {type(error).__name__}: {one_line(error, 300)}", failed=True)
    finally:
        faulthandler.cancel_dump_traceback_later()
    return replace(
        row, figures=[*row.figures, Figure("the whole row", time.monotonic() - start, "s")] if row.figures else []
    )


@click.command()
@output_option
@click.option("--only", type=click.Choice(list(ROWS)), multiple=True, help="A row to run; all by default.")
@click.option(
    "--device", type=click.Choice(("cuda", "cpu")), default="cuda", show_default=True, help="cpu is always --quick."
)
@click.option("--quick", is_flag=True, help="Tiny models: to see that it runs, not to compare.")
@click.option(
    "--minutes", type=float, default=MINUTES, show_default=True, help="After which no row begins, and none goes on."
)
def command(output: Path | None, only: tuple[str, ...], device: str, quick: bool, minutes: float) -> None:
    """Check and time on a GPU what a CPU can only run; exit code 1 if a row fails."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # models and tokens are made on the spot
    size = replace(QUICK if quick or device == "cpu" else FULL, device=device)
    rows = run_benchmark(measure(only or tuple(ROWS), size, minutes), output, PACKAGES, {"size": asdict(size)})
    if any(row.failed for row in rows):
        sys.exit(1)
