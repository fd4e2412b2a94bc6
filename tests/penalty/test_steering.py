"""λ that steers itself: where it ends, from wherever it starts, and what it must not do."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau
from torch.utils.data import Dataset
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)
from transformers.optimization import GreedyLR

from paft_plugin.penalty.injector import PenaltyInjector
from paft_plugin.penalty.live import FullDelta
from paft_plugin.penalty.settings import PenaltySettings
from paft_plugin.penalty.strength import (
    BAND,
    FREEZE,
    WINDOW,
    SettlingSample,
    Steering,
    TargetSparsity,
    TrainingProgress,
    settled_learning_rate,
)

TARGET = 0.9
SIZES = {
    "vocab_size": 32,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


class Rows(Dataset):
    """Four random tokens, then what a hidden permutation makes of them, then of that: what a seed's model learns."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(0, 30, (512, 4), generator=generator)
        permutation = torch.randperm(30, generator=generator)
        self.ids = torch.cat([tokens, permutation[tokens], permutation[permutation[tokens]]], 1)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


@cache
def pretrained(architecture: Callable[[], nn.Module]) -> nn.Module:
    """A base model that has learned one permutation; fine-tuning teaches another."""
    torch.manual_seed(0)
    model = architecture()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ids = Rows(99).ids
    for start in range(0, 200 * 32, 32):
        batch = ids[torch.arange(start, start + 32) % len(ids)]
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
    return model


def llama() -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def neox() -> nn.Module:
    return GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES))


def lora(model: nn.Module) -> nn.Module:
    return get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))


SET_UPS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "LoRA, NeoX, AdamW, linear": (
        lambda: lora(copy.deepcopy(pretrained(neox))),
        {"learning_rate": 5e-3, "lr_scheduler_type": "linear", "warmup_steps": 10},
    ),
    "LoRA, Llama, AdamW, cosine": (
        lambda: lora(copy.deepcopy(pretrained(llama))),
        {"learning_rate": 5e-3, "lr_scheduler_type": "cosine"},
    ),
    "full, NeoX, SGD, linear": (
        lambda: copy.deepcopy(pretrained(neox)),
        {"learning_rate": 0.1, "lr_scheduler_type": "linear", "optim": "sgd"},
    ),
    "full, Llama, AdamW, cosine": (
        lambda: copy.deepcopy(pretrained(llama)),
        {"learning_rate": 1e-3, "lr_scheduler_type": "cosine"},
    ),
}


def steered(set_up: str, settings: PenaltySettings, output_dir: Path, steps: int = 300) -> tuple[float, list[dict]]:
    """The sparsity at the end, and the log; steered, or with a constant λ."""
    make, changes = SET_UPS[set_up]
    torch.manual_seed(0)  # the adapter's
    arguments: dict[str, Any] = {
        "max_steps": steps,
        "per_device_train_batch_size": 32,
        "optim": "adamw_torch",
        "logging_steps": 5,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "seed": 3,
        "disable_tqdm": True,
        **changes,
    }
    trainer = Trainer(
        model=make(), args=TrainingArguments(output_dir=str(output_dir), **arguments), train_dataset=Rows(1)
    )
    injector = PenaltyInjector(trainer, settings)
    injector.install()
    trainer.train()
    return injector.measure().sparsity[1e-5], [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.slow
@pytest.mark.parametrize("start", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("set_up", SET_UPS)
def test_sparsity_ends_within_two_points_of_the_target_from_any_start(
    set_up: str, start: float, tmp_path: Path
) -> None:
    """The λ that holds the target lies near 1e-2 in all of them: the starts are two decades off, right, and two decades off."""
    sparsity, log = steered(set_up, PenaltySettings(start, target_sparsity=TARGET), tmp_path)
    print(table_row(set_up, start, TARGET, sparsity, log))
    assert sparsity == pytest.approx(TARGET, abs=0.02)
    assert log[-1]["paft/sparsity_forecast"] == pytest.approx(TARGET, abs=0.04)
    assert all(3e-4 < entry["paft/lambda"] < 1 for entry in log[len(log) // 10 :])


@pytest.mark.slow
@pytest.mark.parametrize("target", [0.5, 0.98])
def test_other_targets_are_reached_too(target: float, tmp_path: Path) -> None:
    set_up = "LoRA, Llama, AdamW, cosine"
    sparsity, log = steered(set_up, PenaltySettings(1e-2, target_sparsity=target), tmp_path)
    print(table_row(set_up, 1e-2, target, sparsity, log))
    assert sparsity == pytest.approx(target, abs=0.02)


def table_row(set_up: str, start: float, target: float, sparsity: float, log: list[dict]) -> str:
    """As in LOG.md: the end, the last loss and λ, and how far forecasts were from the end, at shares of the run."""
    errors = [log[round(share * len(log)) - 1]["paft/sparsity_forecast"] - sparsity for share in (0.2, 0.5, 0.8, 0.95)]
    cells = [set_up, f"{start:g}", f"{target:g}", f"{100 * (sparsity - target):+.2f}"]
    cells += [f"{log[-1]['loss']:.3f}", f"{log[-1]['paft/lambda']:.2g}", *(f"{100 * error:+.1f}" for error in errors)]
    return f"| {' | '.join(cells)} |"


@pytest.mark.slow
@pytest.mark.parametrize("set_up", SET_UPS)
def test_log_odds_rise_with_the_logarithm_of_a_constant_strength(set_up: str, tmp_path: Path) -> None:
    """What the controller takes for granted; its gains are for a slope of two to five a decade."""
    shares = [steered(set_up, PenaltySettings(strength), tmp_path)[0] for strength in (2.5e-3, 7.9e-3, 2.5e-2)]
    odds = [math.log(share / (1 - share)) for share in shares]
    print(f"| {set_up} | {' | '.join(f'{share:.3f}' for share in shares)} | {odds[2] - odds[0]:.1f} |")
    assert odds[0] < odds[1] < odds[2]
    assert 1 < odds[2] - odds[0] < 8


def test_a_target_needs_no_start_worth_the_name(tmp_path: Path) -> None:
    """However wild the first λ, no step is taken with it: λ is 0 until the two gradients have been weighed."""
    _, log = steered("full, NeoX, SGD, linear", PenaltySettings(1e9, target_sparsity=TARGET), tmp_path, steps=10)
    assert log[0]["paft/lambda"] < 1
    assert log[0]["loss"] < 10


def controller(balance: float = 1.0, start: float = 1.0) -> TargetSparsity:
    made = TargetSparsity(start, TARGET)
    made.weigh(balance)
    return made


NOW = TrainingProgress(50, 100)


def test_too_dense_raises_and_too_sparse_lowers_the_strength() -> None:
    denser, sparser, right = controller(), controller(), controller()
    denser.observe(NOW, 0.5)
    sparser.observe(NOW, 0.99)
    right.observe(NOW, TARGET)
    assert right.at(NOW) == pytest.approx(1.0)
    assert denser.at(NOW) > right.at(NOW) > sparser.at(NOW)


@pytest.mark.parametrize("start", [1e-30, 1e30])
def test_the_strength_stays_where_it_can_matter(start: float) -> None:
    made = controller(balance=0.01, start=start)
    assert made.at(NOW) == pytest.approx(0.01 * BAND[start > 1])


def test_what_a_forecast_of_nothing_or_all_asks_for_is_bounded() -> None:
    for forecast in (0.0, 1.0):
        made = controller()
        made.observe(NOW, forecast)
        assert 0.5 < made.at(NOW) < 2


@pytest.mark.parametrize("norm", [math.inf, math.nan])
def test_gradients_that_overflowed_move_nothing(norm: float) -> None:
    """fp16's scaler skips such a step; an infinite strength would keep every later one from being taken."""
    steering = Steering(1e-4, TARGET, 1e-5)
    steering.weigh_gradients(2.0, 1.0)
    before = steering.at(NOW)
    steering.weigh_gradients(norm, 1.0)
    assert steering.at(NOW) == before > 0


def test_a_controller_goes_on_where_its_state_was() -> None:
    one, other = controller(), TargetSparsity(7.0, TARGET)
    one.observe(NOW, 0.3)
    other.restore(one.state())
    for made in (one, other):
        made.weigh(2.0)
        made.observe(NOW, 0.6)
    assert one.at(NOW) == other.at(NOW)


def delta_of(values: Tensor) -> tuple[nn.Parameter, FullDelta]:
    parameter = nn.Parameter(values.clone())
    return parameter, FullDelta("weight", parameter, torch.zeros_like(values))


def test_what_crosses_zero_counts_as_settling_and_what_stays_away_does_not() -> None:
    swinging = torch.arange(1000) < 700
    parameter, delta = delta_of(torch.ones(1000))
    sample = SettlingSample([delta], size=20000)
    for _ in range(WINDOW + 2):
        with torch.no_grad():
            parameter.mul_(torch.where(swinging, -1.0, 1.0))
        sample.look()
    assert sample.settling(1e-5, decay=1e-6) == pytest.approx(0.7, abs=0.02)
    assert sample.settling(1e-5, decay=1.0) == 0  # they will swing as far in the end as they do now
    for _ in range(WINDOW):
        assert sample.settling(1e-5, decay=1e-6) > 0.5
        sample.look()
    assert sample.settling(1e-5, decay=1e-6) == 0


def test_what_is_small_counts_without_crossing() -> None:
    _, delta = delta_of(torch.where(torch.arange(1000) < 400, 1e-6, 1.0))
    sample = SettlingSample([delta], size=20000)
    for _ in range(WINDOW + 2):
        sample.look()
    assert sample.settling(1e-5, decay=1.0) == pytest.approx(0.4, abs=0.02)


def test_a_sample_goes_on_where_its_state_was() -> None:
    torch.manual_seed(0)
    parameter, delta = delta_of(torch.randn(500))
    one, other = SettlingSample([delta]), SettlingSample([delta])
    for _ in range(3):
        with torch.no_grad():
            parameter.normal_()
        one.look()
    other.restore(one.state())
    for sample in (one, other):
        sample.look()
    assert one.settling(0.1, 0.0) == other.settling(0.1, 0.0)
    assert one.movement() == other.movement() == 0
    assert one.state() == other.state()


@pytest.mark.parametrize("kind", ["linear", "one cycle"])
def test_the_last_learning_rate_is_found_without_touching_the_scheduler(kind: str) -> None:
    def schedule() -> Any:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        if kind == "linear":
            return optimizer, LambdaLR(optimizer, lambda step: 1 - step / 50)
        return optimizer, OneCycleLR(optimizer, max_lr=1.0, total_steps=50)

    optimizer, scheduler = schedule()
    forecast = settled_learning_rate(scheduler, 50)
    rates = []
    for _ in range(50):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert forecast == rates[-1 - FREEZE]


def test_a_scheduler_that_waits_for_a_metric_is_taken_to_stay() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    assert settled_learning_rate(ReduceLROnPlateau(optimizer), 50) == 0.5
    assert settled_learning_rate(GreedyLR(optimizer), 50) == 0.5
