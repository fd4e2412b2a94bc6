"""The penalty of a training on the device: no bit where λ is 0, the subgradient of fp64 on a CPU, the same bits each time."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from paft_plugin.benchmarks.penalty import Scale, make_trainer, with_lora
from paft_plugin.penalty.find import References, find_live_deltas, take_references, trained_themselves
from paft_plugin.penalty.injector import PenaltyInjector
from paft_plugin.penalty.live import LiveDelta, add_subgradients
from paft_plugin.penalty.settings import PenaltySettings

pytestmark = pytest.mark.gpu

TINY = Scale(vocabulary=50, sequences=4, sequence_length=12)
STRONG = PenaltySettings(0.01, reference="device")
KINDS = ("lora", "full")


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def tiny_model(kind: str) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": TINY.vocabulary, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1, attn_implementation="eager")
    model = LlamaForCausalLM(config)
    return with_lora(model) if kind == "lora" else model


def trained(kind: str, device: str, folder: Path, settings: PenaltySettings | None, **changes: Any) -> nn.Module:
    model = tiny_model(kind)
    torch.manual_seed(1)
    trainer = make_trainer(model, TINY, folder, 4, **({"use_cpu": device == "cpu"} | changes))
    if settings:
        PenaltyInjector(trainer, settings).install()
    trainer.train()
    return model


def assert_same_bits(one: nn.Module, other: nn.Module) -> None:
    others = dict(other.named_parameters())
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, others[name]), name


@pytest.mark.parametrize("precision", [{}, {"bf16": True}], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_strength_changes_no_bit(kind: str, precision: dict[str, bool], device: str, tmp_path: Path) -> None:
    plain = trained(kind, device, tmp_path / "plain", None, **precision)
    measured = trained(kind, device, tmp_path / "measured", PenaltySettings(0.0), **precision)
    assert_same_bits(plain, measured)


@pytest.mark.parametrize("kind", KINDS)
def test_a_penalised_training_gives_the_same_bits_each_time(kind: str, device: str, tmp_path: Path) -> None:
    plain, first, again = (trained(kind, device, tmp_path / str(i), (None, STRONG, STRONG)[i]) for i in range(3))
    assert_same_bits(first, again)
    others = dict(plain.named_parameters())
    assert any(not torch.equal(parameter, others[name]) for name, parameter in first.named_parameters())


def test_theta_pre_on_the_host_is_pinned_and_gives_the_same_bits(device: str, tmp_path: Path) -> None:
    on_device = trained("full", device, tmp_path / "device", STRONG)
    on_host = trained("full", device, tmp_path / "host", replace(STRONG, reference="host"))
    assert_same_bits(on_device, on_host)
    references = take_references(on_host.named_parameters(), "host")
    assert all(reference.device.type == "cpu" for reference in references.values())
    assert all(reference.is_pinned() for reference in references.values()) == (device == "cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_the_subgradient_is_that_of_fp64_on_a_cpu(kind: str, dtype: torch.dtype, device: str) -> None:
    start = tiny_model(kind).to(dtype)
    exact, ours = copy.deepcopy(start).double(), copy.deepcopy(start).to(device)
    places = [(model, live(model)) for model in (exact, ours)]
    torch.manual_seed(2)
    with torch.no_grad():
        for model, _ in places:
            move = torch.Generator().manual_seed(3)
            for parameter in model.parameters():
                # Steps that every dtype holds exactly, so that θ − θ_pre is the same everywhere.
                step = torch.randint(-2, 3, parameter.shape, generator=move) / 4
                if parameter.requires_grad:
                    parameter.copy_((parameter.cpu().to(dtype) + step.to(dtype)).to(parameter.dtype))
    for _, deltas in places:
        add_subgradients(deltas, 0.5)
    for (name, one), (_, other) in zip(gradients(exact), gradients(ours), strict=True):
        error = (one - other.cpu().double()).norm() / one.norm()
        assert error < {torch.float32: 1e-3, torch.bfloat16: 1e-2}[dtype], name
    norms = [sum(delta.measure(()).norm.item() for delta in deltas) for _, deltas in places]
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)


def live(model: nn.Module) -> list[LiveDelta]:
    references: References = take_references(trained_themselves(model), "device")
    return find_live_deltas(model, references, "delta")


def gradients(model: nn.Module) -> list[tuple[str, Tensor]]:
    found = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    for _, parameter in found:
        assert parameter.grad is not None
    return [(name, parameter.grad) for name, parameter in found]
