"""What the penalty costs in time and memory: `python -m paft_plugin.benchmarks penalty [--quick] [--only ROW]`.

Each row is a comparison with what a training without the penalty, or one with autograd's, takes. Whatever is compared is measured
alternately in one process (A B A B …), so that a machine which slows down slows both. Memory is the peak of a fresh process above
what it held before the work began, from Linux's /proc.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, TypeAlias

import click
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from paft_plugin.benchmarks import harness
from paft_plugin.benchmarks.harness import MIB, BenchmarkRow, Figure, apart, figure, quotients
from paft_plugin.deltas.proof import PACKAGES, Measurement
from paft_plugin.penalty.injector import PenaltyInjector
from paft_plugin.penalty.l1 import BLOCK_ENTRIES, measure_product, subgradient_of_product
from paft_plugin.penalty.settings import PenaltySettings

RANK = 16
SUBGRADIENT = PenaltySettings(1e-6)
ACCUMULATION = 8
WARM_UP = 4  # rounds until the heap no longer grows
PROXIMAL = PenaltySettings(1e-6, mode="proximal", l1_on="factors")
CONTROLLER = PenaltySettings(1e-6, target_sparsity=0.5)
INSPECT_STEPS = 50  # what the README recommends for paft_inspect_steps
EVERY_STEP = PenaltySettings(1e-6, inspect_steps=1)
# For glibc: whatever is freed stays mapped. Otherwise every large tensor is mapped anew, and its first touch costs page faults;
# which of the two a training process does depends on what it allocated before.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
    "MALLOC_TOP_PAD_": "2000000000",
}

Factors = list[tuple[Tensor, Tensor]]
Llama: TypeAlias = PreTrainedModel | PeftModel


@dataclass(frozen=True)
class Scale:
    """How large the problems are, and how often each is timed."""

    hidden: int = 768
    intermediate: int = 2048
    layers: int = 12
    vocabulary: int = 32000
    sequences: int = 8
    """In an optimizer step, of `sequence_length` tokens each."""
    sequence_length: int = 512
    pairs: int = 3
    """Optimizer steps without and with the penalty that count, after one pair that does not."""
    layer_set: tuple[tuple[int, int], ...] = (
        *((4096, 4096), (1024, 4096), (1024, 4096), (4096, 4096)),  # q, k, v, o
        *((14336, 4096), (14336, 4096), (4096, 14336)),  # gate, up, down
    )
    """Shapes (out, in) of the linear maps of one decoder layer; Llama-3-8B's."""
    repeats: int = 7


FULL = Scale()
QUICK = Scale(sequence_length=32, pairs=1, repeats=3)


@dataclass
class StepTimes:
    """Seconds of whole optimizer steps, and of the penalty's part in those that had one."""

    plain: list[float] = field(default_factory=list)
    penalised: list[float] = field(default_factory=list)
    penalty: list[float] = field(default_factory=list)
    passes: list[int] = field(default_factory=list)
    inspections: list[float] = field(default_factory=list)
    """Of the steps with a penalty, if they are inspected."""

    def timings(self) -> dict[str, list[float]]:
        """Every sample, for the JSON."""
        return {"plain step": self.plain, "penalised step": self.penalised, "penalty in a step": self.penalty}

    def ratios(self, at_most: float) -> list[Figure]:
        """How much longer the penalty makes a step: by the two steps' medians, and by its own clock."""
        plain = median(self.plain)
        pairs = quotients(self.penalised, self.plain)
        shares = [1 + seconds / plain for seconds in self.penalty]
        return [
            figure("step without penalty", self.plain, "s"),
            figure("step with penalty", self.penalised, "s"),
            Figure("ratio of step medians", median(self.penalised) / plain, "×", min(pairs), max(pairs), at_most),
            figure("1 + penalty / plain step", shares, "×", at_most),
        ]


class SwitchedInjector(PenaltyInjector):
    """A penalty that can be left out of single optimizer steps, and whose own time is known."""

    def __init__(self, trainer: Trainer, settings: PenaltySettings) -> None:
        super().__init__(trainer, settings)
        self.on = True
        self.seconds = 0.0
        self.passes = 0
        self.inspection = 0.0
        """Seconds of the last one."""

    def before_optimizer_step(self) -> None:
        self.passes += self.on
        self._timed(super().before_optimizer_step)

    def after_optimizer_step(self) -> None:
        self._timed(super().after_optimizer_step)

    def end_step(self) -> None:
        self._timed(super().end_step)

    def inspect(self) -> None:
        before = self.seconds
        self._timed(super().inspect)
        self.inspection, self.seconds = self.seconds - before, before

    def measure(self) -> Measurement:
        return self._timed(super().measure) or Measurement(0.0, {}, 0)

    def state(self) -> dict[str, Any]:
        return self._timed(super().state) or {}

    def _timed(self, work: Callable[[], Any]) -> Any:
        """What `work` returns; None if the penalty is off."""
        if not self.on:
            return None
        start = now()
        result = work()
        self.seconds += now() - start
        return result


class StepClock(TrainerCallback):
    """Times every optimizer step from its first micro-batch to its log, and switches the penalty between them."""

    def __init__(self, injector: SwitchedInjector, alternate: bool) -> None:
        self.times = StepTimes()
        self._injector = injector
        self._alternate = alternate
        self._warm_up = 2

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._injector.seconds, self._injector.passes = 0.0, 0
        self._start = now()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" not in logs:  # the summary after the last step
            return
        seconds, injector = now() - self._start, self._injector
        if self._warm_up:
            self._warm_up -= 1
        elif injector.on:
            self.times.penalised.append(seconds)
            self.times.penalty.append(injector.seconds)
            self.times.passes.append(injector.passes)
            self.times.inspections.append(injector.inspection)
        else:
            self.times.plain.append(seconds)
        injector.on = not injector.on if self._alternate else True


def now() -> float:
    """Seconds, once the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return perf_counter()


def random_llama(scale: Scale, lora: bool, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Llama:
    """A Llama with random weights, under LoRA on all linear layers (in fp32, as PEFT wants it) or to be trained whole."""
    torch.manual_seed(0)
    heads = max(1, scale.hidden // 64)
    config = LlamaConfig(
        vocab_size=scale.vocabulary,
        hidden_size=scale.hidden,
        intermediate_size=scale.intermediate,
        num_hidden_layers=scale.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
    )
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return with_lora(model) if lora else model


def with_lora(model: Llama) -> Llama:
    """`model` under a fresh LoRA on all linear layers."""
    return get_peft_model(model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear"))


def make_trainer(model: nn.Module, scale: Scale, folder: Path, steps: int, **changes: Any) -> Trainer:
    """A plain Trainer on random tokens, `scale.sequences` of them in every optimizer step; it logs each."""
    accumulation = changes.get("gradient_accumulation_steps", 1)
    quiet = {"logging_steps": 1, "save_strategy": "no", "report_to": [], "disable_tqdm": True}
    batch = {"per_device_train_batch_size": scale.sequences // accumulation, "max_steps": steps}
    settings: dict[str, Any] = {**quiet, **batch, "learning_rate": 1e-4, "use_cpu": True}
    tokens = torch.randint(0, scale.vocabulary, (scale.sequences, scale.sequence_length))
    rows = [{"input_ids": ids, "labels": ids} for ids in tokens]
    arguments = TrainingArguments(output_dir=str(folder), **(settings | changes))
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.remove_callback(PrinterCallback)
    return trainer


def time_steps(
    model: nn.Module, scale: Scale, settings: PenaltySettings = SUBGRADIENT, alternate: bool = True, **changes: Any
) -> StepTimes:
    """Train `model`, every other optimizer step with the penalty, or every step if not `alternate`."""
    with tempfile.TemporaryDirectory() as folder:
        steps = 2 + scale.pairs * (2 if alternate else 1)
        trainer = make_trainer(model, scale, Path(folder), steps, **changes)
        injector = SwitchedInjector(trainer, settings)
        injector.install()
        injector.on = not alternate
        clock = StepClock(injector, alternate)
        trainer.add_callback(clock)
        trainer.train()
    return clock.times


def peak_memory(prepare: Callable[..., Callable[[], object]], *arguments: Any) -> int:
    """Bytes by which the work that `prepare(*arguments)` returns raises the resident memory of a fresh process."""
    return apart(peak_here, prepare, *arguments)


def peak_here(prepare: Callable[..., Callable[[], object]], *arguments: Any) -> int:
    """The same in this process, where memory that was freed before the work hides what the work takes."""
    work = prepare(*arguments)
    # Not getrusage's ru_maxrss: a process inherits that from the one that started it.
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is resident now
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def resident(key: str) -> int:
    """Bytes of this process's memory: `VmRSS` now, `VmHWM` at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) * 1024


def lora_step(scale: Scale) -> BenchmarkRow:
    """Training steps of a LoRA with the penalty against those without."""
    model = random_llama(scale, lora=True)
    whole = time_steps(model, scale)
    split = time_steps(random_llama(scale, lora=True), scale, alternate=False, gradient_accumulation_steps=ACCUMULATION)
    note = f"{parameters_of(model)}, LoRA r={RANK} on all linear layers, {tokens_of(scale)}, logged every step"
    figures = [
        *whole.ratios(at_most=1.03),
        figure("penalty, accumulation 1", whole.penalty, "s"),
        figure(f"penalty, accumulation {ACCUMULATION}", split.penalty, "s"),
        Figure(f"passes a step, accumulation {ACCUMULATION}", max(split.passes), "", at_most=1),
    ]
    timings = whole.timings() | {f"penalty in a step, accumulation {ACCUMULATION}": split.penalty}
    return BenchmarkRow("lora step", figures, timings, note)


def full_step(scale: Scale) -> BenchmarkRow:
    """Training steps of a whole model with the penalty, θ_pre on the device, against those without."""
    settings = PenaltySettings(SUBGRADIENT.strength, reference="device")
    model = random_llama(scale, lora=False)
    times = time_steps(model, scale, settings)
    copy = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    allowed = copy + 4 * BLOCK_ENTRIES
    plain, penalised = (peak_memory(_full_training, scale, one) for one in (None, settings))
    extra = penalised - plain
    figures = [
        *times.ratios(at_most=1.05),
        figure("penalty", times.penalty, "s"),
        Figure("peak memory without penalty", plain / MIB, "MiB"),
        Figure("peak memory with penalty", penalised / MIB, "MiB"),
        Figure("extra memory", extra / MIB, "MiB"),
        Figure("one θ_pre copy + one block", allowed / MIB, "MiB"),
        # Two processes never peak at quite the same size.
        Figure("extra / (copy + block)", extra / allowed, "×", at_most=1.02),
    ]
    note = f"{parameters_of(model)}, AdamW, fp32, {tokens_of(scale)}; memory: 2 steps of one sequence in processes of their own"
    return BenchmarkRow("full step", figures, times.timings(), note)


def _full_training(scale: Scale, settings: PenaltySettings | None) -> Callable[[], object]:
    def work() -> None:
        with tempfile.TemporaryDirectory() as folder:
            model = random_llama(scale, lora=False)
            trainer = make_trainer(model, scale, Path(folder), 2, per_device_train_batch_size=1)
            if settings:
                PenaltyInjector(trainer, settings).install()
            trainer.train()

    return work


def inspection(scale: Scale) -> BenchmarkRow:
    """What one inspection of a LoRA costs, and what share of a run that is at the recommended interval."""
    model = random_llama(scale, lora=True)
    times = time_steps(model, scale, EVERY_STEP)
    steps = INSPECT_STEPS * median(times.plain)
    shares = [100 * seconds / steps for seconds in times.inspections]
    figures = [
        figure("step without penalty", times.plain, "s"),
        figure("one inspection", times.inspections, "s"),
        figure(f"inspection / {INSPECT_STEPS} steps", shares, "%", at_most=1),
    ]
    timings = {"plain step": times.plain, "inspection": times.inspections}
    note = f"{parameters_of(model)}, LoRA r={RANK} on all linear layers, {tokens_of(scale)}"
    return BenchmarkRow("inspection", figures, timings, note)


def own_time(name: str, settings: PenaltySettings, scale: Scale) -> BenchmarkRow:
    """The penalty's own time, in proximal mode or when λ is steered."""
    # What the penalty does is independent of the tokens, so the steps around it may be short.
    short = replace(scale, sequences=2, sequence_length=32, pairs=scale.repeats)
    model = random_llama(short, lora=True)
    times = time_steps(model, short, settings, alternate=False)
    note = f"{parameters_of(model)}, LoRA r={RANK} on all linear layers, with its logging; no bar"
    return BenchmarkRow(name, [figure("penalty", times.penalty, "s")], {"penalty in a step": times.penalty}, note)


def layer_set(scale: Scale) -> BenchmarkRow:
    """One decoder layer of Llama-3-8B: our two passes against autograd through the products."""
    fresh = apart(_time_layer_set, scale)
    kept = apart(_time_layer_set, scale, environment=KEEP_MEMORY)
    memory_naive, memory_ours = (peak_memory(_on_layer_set, work, scale.layer_set) for work in (naive, ours))
    figures = [
        figure("naive autograd: norm + gradient", fresh["naive"], "s"),
        figure("ours: subgradient + norm + count", fresh["ours"], "s"),
        figure("ours: subgradient only", fresh["ours_without_measure"], "s"),
        _speedup("naive / ours", fresh, "ours", 10),
        _speedup("naive / ours, subgradient only", fresh, "ours_without_measure", None),
        figure("memory kept: naive autograd", kept["naive"], "s"),
        figure("memory kept: ours", kept["ours"], "s"),
        _speedup("memory kept: naive / ours", kept, "ours", 10),
        _speedup("memory kept: subgradient only", kept, "ours_without_measure", None),
        Figure("extra memory, naive", memory_naive / MIB, "MiB"),
        Figure("extra memory, ours", memory_ours / MIB, "MiB"),
        Figure("memory, ours / naive", memory_ours / memory_naive, "×", at_most=1 / 20),
    ]
    entries = sum(rows * columns for rows, columns in scale.layer_set) / 1e6
    note = (
        f"LoRA r={RANK}, fp32, {entries:.1f} M entries of δ; naive: one loss term and one backward for all, no count; "
        "memory kept: the allocator returns nothing to the system, so naive pays no page faults"
    )
    timings = fresh | {f"memory kept: {name}": samples for name, samples in kept.items()}
    return BenchmarkRow("llama-3-8b layer set", figures, timings, note)


def _time_layer_set(scale: Scale) -> dict[str, list[float]]:
    factors = random_factors(scale.layer_set)
    contenders = (naive, ours, ours_without_measure)
    samples: dict[str, list[float]] = {work.__name__: [] for work in contenders}
    for _ in range(WARM_UP + scale.repeats):
        for work in contenders:
            start = now()
            work(factors)
            samples[work.__name__].append(now() - start)
    return {name: seconds[WARM_UP:] for name, seconds in samples.items()}


def _speedup(what: str, samples: Mapping[str, Sequence[float]], name: str, at_least: float | None) -> Figure:
    slow, fast = samples["naive"], samples[name]
    pairs = quotients(slow, fast)
    return Figure(what, median(slow) / median(fast), "×", min(pairs), max(pairs), at_least=at_least)


def random_factors(shapes: Sequence[tuple[int, int]]) -> Factors:
    """A and B of LoRAs on linear maps of `shapes` (out, in)."""
    torch.manual_seed(0)
    return [
        (torch.randn(RANK, columns, requires_grad=True), torch.randn(rows, RANK, requires_grad=True))
        for rows, columns in shapes
    ]


def naive(factors: Factors) -> object:
    """As one writes it into a loss: the norm with its graph, and one backward."""
    for A, B in factors:
        A.grad = B.grad = None
    loss = torch.stack([(2.0 * B @ A).abs().sum() for A, B in factors]).sum()
    loss.backward()
    return loss


def ours(factors: Factors) -> object:
    """What a step that is logged costs: subgradient, norm and the count at one threshold."""
    return ours_without_measure(factors), [measure_product(A, B, 2.0, (1e-5,)) for A, B in factors]


def ours_without_measure(factors: Factors) -> object:
    """What a step that is not logged costs."""
    return [subgradient_of_product(A, B, 2.0) for A, B in factors]


def _on_layer_set(work: Callable[[Factors], object], shapes: Sequence[tuple[int, int]]) -> Callable[[], object]:
    work(random_factors([(512, 512)]))  # libraries that load, and buffers that they keep, are nobody's extra
    return partial(work, random_factors(shapes))


def parameters_of(model: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.1f} M parameters"


def tokens_of(scale: Scale) -> str:
    return f"{scale.sequences * scale.sequence_length} tokens a step"


ROWS: dict[str, Callable[[Scale], BenchmarkRow]] = {
    "lora step": lora_step,
    "llama-3-8b layer set": layer_set,
    "full step": full_step,
    "proximal step": partial(own_time, "proximal step", PROXIMAL),
    "controller": partial(own_time, "controller", CONTROLLER),
    "inspection": inspection,
}


@click.command()
@harness.output_option
@click.option("--quick", is_flag=True, help="Fewer tokens and repeats: to see that it runs, not to compare.")
@click.option("--only", type=click.Choice(list(ROWS)), multiple=True, help="A row to run; all by default.")
def command(output: Path | None, quick: bool, only: tuple[str, ...]) -> None:
    """Measure what the L1 penalty costs in time and memory."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # models and tokens are made on the spot
    scale = QUICK if quick else FULL

    def rows() -> Iterator[BenchmarkRow]:
        for name in only or ROWS:
            click.echo(f"{name} …", err=True)
            yield ROWS[name](scale)

    harness.run_benchmark(rows(), output, PACKAGES, {"quick": quick, "scale": asdict(scale)})
