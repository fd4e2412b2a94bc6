"""When δ is inspected, what reaches the loggers, and that training does not notice."""

from __future__ import annotations

import logging
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft.tuners.lora import LoraLayer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from paft_plugin.penalty.injector import PenaltyInjector
from paft_plugin.penalty.inspector import kind_of, log_magnitudes
from paft_plugin.penalty.settings import PenaltySettings
from tests.penalty.adapters import TRAINED
from tests.penalty.models import live, of_entries
from tests.penalty.trainers import (
    STEPS,
    Stop,
    assert_same,
    lora_llama,
    tiny_llama,
    trainable,
    trainer_with,
)

EVERY = 4
LOWEST = 2.0**-40
Figures = dict[str, float]


class Logger(TrainerCallback):
    """What every logger gets: the inspections' figures by step, and in which order logs came."""

    def __init__(self) -> None:
        self.figures: dict[int, Figures] = {}
        self.order: list[str] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        figures = {name: value for name, value in logs.items() if name.startswith("paft/inspect")}
        self.order.append("figures" if figures else next(iter(logs)))
        if figures:
            assert state.global_step not in self.figures, "a step is inspected once"
            assert logs["epoch"] == state.epoch
            self.figures[state.global_step] = figures


def inspected(
    model: nn.Module, output_dir: Path, strength: float = 3e-3, every: int = EVERY, **changes: Any
) -> tuple[Trainer, Logger]:
    """A trainer, ready to be run, and what it will log."""
    trainer, logger = trainer_with(None, model, output_dir, **{"save_strategy": "no", **changes}), Logger()
    PenaltyInjector(trainer, PenaltySettings(strength, inspect_steps=every)).install()
    trainer.add_callback(logger)
    return trainer, logger


def random_states() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()


@pytest.mark.parametrize("logging_steps", [1, 3, 100])
def test_every_so_many_steps_and_after_the_last(logging_steps: int, tmp_path: Path) -> None:
    trainer, logger = inspected(lora_llama(), tmp_path, logging_steps=logging_steps)
    trainer.train()
    assert list(logger.figures) == [4, 8, 12, STEPS]
    assert logger.order[-2:] == ["figures", "train_runtime"], "while all loggers are open"
    losses = [entry["step"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses == list(range(logging_steps, STEPS + 1, logging_steps))


def test_the_last_step_is_not_inspected_twice(tmp_path: Path) -> None:
    trainer, logger = inspected(lora_llama(), tmp_path, every=7)
    trainer.train()
    assert list(logger.figures) == [7, STEPS]


def test_a_run_that_is_stopped_early_is_inspected_where_it_ends(tmp_path: Path) -> None:
    class StopEarly(TrainerCallback):
        def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = state.global_step >= 6

    trainer, logger = inspected(lora_llama(), tmp_path)
    trainer.add_callback(StopEarly())
    trainer.train()
    assert list(logger.figures) == [4, 6]


@pytest.mark.parametrize("strength", [0.0, 3e-3])
@pytest.mark.parametrize("make", [lora_llama, tiny_llama], ids=["lora", "full"])
def test_an_inspected_run_is_bit_identical(make: Any, strength: float, tmp_path: Path) -> None:
    """At λ = 0 to one without the penalty; otherwise to one that isn't inspected, reported losses included."""
    plain, seen = make(), make()
    states, histories = [], []
    for model, every in ((plain, None), (seen, 1)):
        settings = PenaltySettings(strength, inspect_steps=every) if strength or every else None
        trainer = trainer_with(settings, model, tmp_path / f"every {every}", save_strategy="no")
        trainer.train()
        states.append(random_states())
        reported = [
            {key: value for key, value in entry.items() if "/" not in key} for entry in trainer.state.log_history
        ]
        histories.append(reported[:-1])
    assert_same(plain, seen, rtol=0, atol=0)
    assert states[0] == states[1]
    assert histories[0] == histories[1]


def test_a_resumed_run_keeps_the_schedule(tmp_path: Path) -> None:
    straight, expected = inspected(lora_llama(), tmp_path / "straight", every=3)
    straight.train()
    stopped, before = inspected(lora_llama(), tmp_path / "resumed", every=3, save_strategy="steps")
    stopped.add_callback(Stop())
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    resumed, after = inspected(lora_llama(), tmp_path / "resumed", every=3, save_strategy="no")
    resumed.train(resume_from_checkpoint=True)
    assert list(before.figures) == [3, 6, 9]
    assert list(after.figures) == [9, 12, STEPS]
    assert before.figures | after.figures == expected.figures


def by_hand(deltas: dict[str, Tensor], base: dict[str, Tensor]) -> Figures:
    """The figures of one group, in fp64."""
    entries = torch.cat([delta.double().flatten() for delta in deltas.values()]).abs()
    n, l1, l2 = len(entries), entries.sum(), entries.square().sum().sqrt()
    weights = torch.cat([base[name].double().flatten() for name in deltas])
    return {
        "zeros": (entries == 0).double().mean().item(),
        "sparsity@1e-5": (entries <= 1e-5).double().mean().item(),
        "l1_norm": l1.item(),
        "l2_norm": l2.item(),
        "max": entries.max().item(),
        "hoyer": ((n**0.5 - l1 / l2) / (n**0.5 - 1)).item(),
        "relative_l2": (l2 / weights.square().sum().sqrt()).item(),
    }


@pytest.mark.parametrize("make", [lora_llama, tiny_llama], ids=["lora", "full"])
def test_the_figures_are_those_of_the_delta_by_kind_and_in_total(make: Any, tmp_path: Path) -> None:
    model = make()
    layers = {name: one for name, one in model.named_modules() if isinstance(one, LoraLayer)}
    start = {name: p.clone() for name, p in trainable(model).items()}
    base = {name: one.get_base_layer().weight.clone() for name, one in layers.items()} or start
    trainer, logger = inspected(model, tmp_path)
    trainer.train()
    deltas = {name: one.get_delta_weight("default").detach() for name, one in layers.items()}
    if not layers:
        deltas = {name: p - start[name] for name, p in trainable(model).items()}
    figures = logger.figures[STEPS]
    kinds = sorted({kind_of(name) for name in deltas})
    if layers:
        assert kinds == ["o_proj", "q_proj", "up_proj"]
    else:
        assert {"q_proj", "embed_tokens", "input_layernorm", "norm", "lm_head"} < set(kinds)
    groups = {f"/{kind}": {name: one for name, one in deltas.items() if kind_of(name) == kind} for kind in kinds}
    measures = set()
    for group, members in {"": deltas, **groups}.items():
        for name, value in by_hand(members, base).items():
            # Entries at the threshold itself are rounded differently; the model is in fp64.
            assert figures.pop(f"paft/inspect{group}/{name}") == pytest.approx(value, rel=1e-6, abs=1e-9), (group, name)
        measures |= {name for name in figures if name.rpartition("/")[0] == f"paft/inspect{group}"}
    assert all(name.endswith(("/top_1_percent_mass", "/effective_rank")) for name in measures)
    assert figures.keys() == measures
    ranks = [figures[f"paft/inspect/{kind}/effective_rank"] for kind in kinds if layers]
    assert all(1 <= rank <= 4 for rank in ranks)
    if ranks:
        assert figures["paft/inspect/effective_rank"] == pytest.approx(sum(ranks) / len(ranks))  # one module a kind


def test_as_many_figures_as_the_readme_says(tmp_path: Path) -> None:
    """8 and one a threshold for each kind of module and for all together; 7 without an adapter."""
    for name, make, each in (("lora", lora_llama, 9), ("full", tiny_llama, 8)):
        trainer, logger = inspected(make(), tmp_path / name)
        trainer.train()
        kinds = {kind_of(delta.name) for delta in live(make())}
        assert {len(figures) for figures in logger.figures.values()} == {each * (len(kinds) + 1)}


def test_a_delta_of_zero_leaves_out_what_has_no_value(tmp_path: Path) -> None:
    trainer, logger = inspected(lora_llama(), tmp_path, learning_rate=0.0)
    trainer.train()
    figures = logger.figures[STEPS]
    assert figures["paft/inspect/zeros"] == figures["paft/inspect/sparsity@1e-5"] == 1
    assert figures["paft/inspect/l2_norm"] == figures["paft/inspect/relative_l2"] == 0
    assert not any("hoyer" in name or "top_1" in name for name in figures)


def test_a_run_that_diverges_is_inspected_to_its_end(tmp_path: Path) -> None:
    for make in (tiny_llama, lora_llama):
        trainer, logger = inspected(make(), tmp_path / make.__name__, learning_rate=float("inf"))
        trainer.train()
        assert not math.isfinite(logger.figures[STEPS]["paft/inspect/l1_norm"])


def test_a_base_that_cannot_be_read_is_left_out_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = lora_llama()
    trainer, logger = inspected(model, tmp_path)
    # As a quantiser would store it.
    layer = next(one for name, one in model.named_modules() if name.endswith("up_proj"))
    base = layer.get_base_layer()
    unpacked = base.weight.detach().clone()
    base.forward = lambda x: nn.functional.linear(x, unpacked)
    base.weight.data = base.weight.data.to(torch.float8_e4m3fn)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    figures = logger.figures[STEPS]
    assert [name for name in figures if name.endswith("relative_l2")] == [
        "paft/inspect/q_proj/relative_l2",
        "paft/inspect/o_proj/relative_l2",
    ]
    assert caplog.text.count("relative_l2 is left out") == 1
    assert "layers.0.mlp.up_proj" in caplog.text


@pytest.mark.parametrize("kind", TRAINED)
def test_every_delta_has_a_kind_that_no_layer_shows_in(kind: str, tmp_path: Path) -> None:
    kinds = {kind_of(delta.name) for delta in live(TRAINED[kind](tmp_path))}
    assert kinds <= {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "gate_up_proj", "c_attn"),
        *("input_layernorm", "post_attention_layernorm", "norm", "embed_tokens", "lm_head", "attention", "out_proj"),
    }


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("base_model.model.model.layers.10.mlp.experts.base_layer.gate_up_proj", "gate_up_proj"),
        ("base_model.model.model.layers.1.block_sparse_moe.experts.3.w1", "w1"),
        ("base_model.model.lm_head.modules_to_save.my_adapter.weight", "lm_head"),
        ("model.embed_tokens.token_adapter.trainable_tokens_delta.default", "embed_tokens"),
        ("model.layers.0.self_attn.q_proj.bias", "q_proj"),
        ("0.weight", "0.weight"),
        ("weight_norm.weight", "weight_norm"),
    ],
)
def test_kinds(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_a_histogram_holds_every_entry_between_its_edges() -> None:
    torch.manual_seed(0)
    entries = torch.cat([torch.randn(5000) * 1e-5, torch.zeros(70), torch.full((30,), LOWEST / 4)])
    histogram = log_magnitudes(of_entries(entries))
    assert sum(histogram.counts) == len(entries)
    assert len(histogram.edges) == len(histogram.counts) + 1 < 400
    logs = entries.abs().double().log10()
    for count, low, high in zip(histogram.counts[1:], histogram.edges[1:], histogram.edges[2:], strict=False):
        assert count == ((logs >= low) & (logs < high)).sum()
    assert histogram.counts[0] == (entries.abs() < LOWEST).sum() >= 100
    assert histogram.counts[-1] > 0
    assert log_magnitudes(of_entries(torch.full((7,), 1e-3))).counts == [7]
    assert len(log_magnitudes(of_entries(torch.zeros(9))).counts) == 1
    assert log_magnitudes(of_entries(torch.tensor([1.0, math.inf]))) is None
    assert log_magnitudes(of_entries(torch.full((3,), 1e38))).counts[-1] == 3


def test_tensorboard_holds_the_figures_and_the_histogram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    trainer, logger = inspected(lora_llama(), tmp_path, report_to=["tensorboard"])
    trainer.train()
    events = EventAccumulator(str(tmp_path / "events"), size_guidance={"histograms": 0, "scalars": 0}).Reload()
    for name in logger.figures[STEPS]:
        points = {event.step: event.value for event in events.Scalars(f"train/{name}")}
        assert points == pytest.approx({step: figures[name] for step, figures in logger.figures.items()}, rel=1e-6)
    drawn = events.Histograms("train/paft/inspect/log10_delta")
    assert [event.step for event in drawn] == list(logger.figures)
    for event in drawn:
        value = event.histogram_value
        assert value.num == sum(value.bucket) == sum(delta.entries for delta in live(lora_llama()))
        largest = math.log10(logger.figures[event.step]["paft/inspect/max"])
        assert value.bucket_limit[-2] <= largest < value.bucket_limit[-1]


def test_the_console_is_spared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer, logger = inspected(lora_llama(), tmp_path, disable_tqdm=True)
    trainer.train()
    printed = capsys.readouterr().out
    assert logger.figures
    assert "'loss'" in printed
    assert "paft/inspect" not in printed
