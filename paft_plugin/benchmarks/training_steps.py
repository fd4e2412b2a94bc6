"""Timing training steps with and without the penalty, and the peak memory of work in a process of its own.

Whatever is compared is measured alternately in one process (A B A B …), so that a machine which slows down slows both. Memory is
the peak of a fresh process above what it held before the work began, from Linux's /proc.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from paft_plugin.benchmarks.harness import Figure, apart, figure, quotients
from paft_plugin.deltas.proof import Measurement
from paft_plugin.penalty.injector import PenaltyInjector
from paft_plugin.penalty.settings import PenaltySettings

RANK = 16
SUBGRADIENT = PenaltySettings(1e-6)


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


def random_llama(scale: Scale, lora: bool) -> nn.Module:
    """A Llama with random weights, under LoRA on all linear layers or to be trained whole."""
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
    model = LlamaForCausalLM(config)
    if not lora:
        return model
    return get_peft_model(model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear"))


def make_trainer(model: nn.Module, scale: Scale, folder: Path, steps: int, **changes: Any) -> Trainer:
    """A plain Trainer on random tokens, `scale.sequences` of them in every optimizer step; it logs each."""
    accumulation = changes.get("gradient_accumulation_steps", 1)
    settings: dict[str, Any] = {
        "per_device_train_batch_size": scale.sequences // accumulation,
        "max_steps": steps,
        "learning_rate": 1e-4,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
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
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) * 1024
