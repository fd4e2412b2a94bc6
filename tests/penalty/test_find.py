"""Which deltas a model trains: those of its active adapters, each shared parameter once, and nothing in silence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from torch import nn

from paft_plugin.errors import PaftError
from paft_plugin.penalty.live import ExpertsDelta, FactorsDelta, FullDelta, LiveDelta, LowRankDelta, measure
from tests.penalty.models import (
    LINEAR,
    copies,
    entries_of,
    live,
    move,
    tiny_llama,
    tiny_mixtral,
    trainable,
    with_lora,
)

STRENGTH = 0.01


def two_adapters(**settings: Any) -> PeftModel:
    model = with_lora(tiny_llama(), **settings)
    model.add_adapter("other", LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "up_proj"], **settings))
    return model


@torch.no_grad()
def move_all_adapters(model: nn.Module) -> None:
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.copy_(torch.randn_like(parameter))


def assert_penalty_is_that_of(model: PeftModel, adapters: list[str]) -> None:
    """Norm, entries and gradients are those of these adapters' deltas; the other parameters get no gradient."""
    deltas = live(model)
    move_all_adapters(model)
    model.zero_grad(set_to_none=True)
    layers = [layer for layer in model.modules() if hasattr(layer, "get_delta_weight")]
    expected = [layer.get_delta_weight(a) for layer in layers for a in adapters if a in layer.scaling]
    (STRENGTH * sum(delta.abs().sum() for delta in expected)).backward()
    gradients = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)

    measured = measure(deltas, ())
    for delta in deltas:
        delta.add_subgradient(STRENGTH)

    entries = entries_of(expected)
    assert measured.entries == entries.numel()
    assert measured.l1_norm == pytest.approx(entries.abs().sum().item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        if gradients[name] is None:
            assert parameter.grad is None, name
        else:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("active", ["default", "other"])
def test_only_the_active_adapter_is_penalised(active: str) -> None:
    """The other one, such as TRL's frozen reference, is neither measured nor given gradients."""
    model = two_adapters()
    model.set_adapter(active)
    assert_penalty_is_that_of(model, [active])


def test_each_of_two_active_adapters_is_a_delta_of_its_own() -> None:
    model = two_adapters()
    model.base_model.set_adapter(["default", "other"])
    assert_penalty_is_that_of(model, ["default", "other"])


def test_an_inactive_adapter_that_is_trained_is_refused() -> None:
    model = two_adapters()
    for name, parameter in model.named_parameters():
        if ".other." in name:
            parameter.requires_grad_(True)
    with pytest.raises(PaftError, match=r"up_proj\.lora_A\.other\.weight: .*freeze it"):
        live(model)


def test_only_the_active_adapters_modules_to_save_are_penalised() -> None:
    model = two_adapters(modules_to_save=["lm_head"])
    model.set_adapter("other")
    (full,) = [delta for delta in live(model) if isinstance(delta, FullDelta)]
    assert full.name.endswith("lm_head.modules_to_save.other.weight")


def full_deltas(model: nn.Module) -> list[FullDelta]:
    return [delta for delta in live(model) if isinstance(delta, FullDelta)]


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        ({"modules_to_save": ["lm_head"]}, 50),
        ({"modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": True}, 50),
        ({"modules_to_save": ["lm_head"], "ensure_weight_tying": True}, 50),
        ({"modules_to_save": ["embed_tokens", "lm_head"]}, 100),  # PEFT trains two copies that drift apart
        ({"trainable_token_indices": [3, 4, 8]}, 3),
        ({"trainable_token_indices": {"embed_tokens": [3, 4, 8]}}, 3),
        ({"trainable_token_indices": {"embed_tokens": [3, 4], "lm_head": [3, 4]}, "ensure_weight_tying": True}, 2),
    ],
)
def test_what_peft_ties_is_counted_once(settings: dict[str, Any], rows: int) -> None:
    """What one backward through the tied model reaches is just what is counted."""
    model = with_lora(tiny_llama(tie=True), **settings)
    deltas = full_deltas(model)
    assert sum(delta.entries for delta in deltas) == rows * model.config.hidden_size
    ids = torch.tensor([[3, 4, 8, 9]])
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(delta.parameter.grad is not None for delta in deltas)
    assert {id(delta.parameter) for delta in deltas} == {
        id(p) for name, p in trainable(model).items() if "lora_" not in name
    }


def test_a_tied_weight_trained_in_full_is_counted_once() -> None:
    model = tiny_llama(tie=True)
    untied = tiny_llama(tie=False)
    difference = sum(d.entries for d in live(untied)) - sum(d.entries for d in live(model))
    assert difference == model.lm_head.weight.numel()


@pytest.mark.parametrize(
    "settings", [{"modules_to_save": ["lm_head"]}, {"trainable_token_indices": [3, 1]}], ids=["module", "tokens"]
)
def test_full_copies_are_penalised_against_their_originals(settings: dict[str, Any]) -> None:
    (delta,) = full_deltas(with_lora(tiny_llama(), **settings))
    original = delta.parameter.detach().clone()
    with torch.no_grad():
        delta.parameter.add_(0.25)
    measured = delta.measure((0.2, 0.3))
    torch.testing.assert_close(delta.reference, original, rtol=0, atol=0)
    assert measured.norm.item() == pytest.approx(0.25 * original.numel(), rel=1e-6)
    assert measured.small.tolist() == [0, original.numel()]


def test_frozen_parameters_are_no_deltas() -> None:
    model = tiny_llama()
    model.model.embed_tokens.requires_grad_(False)
    assert [delta.name for delta in live(model)] == list(trainable(model))


def kinds(deltas: list[LiveDelta]) -> list[type]:
    return [type(delta) for delta in deltas]


@pytest.mark.parametrize(
    ("l1_on", "kind"), [("delta", (LowRankDelta, ExpertsDelta)), ("factors", (FactorsDelta, FactorsDelta))]
)
def test_adapters_come_first_then_what_is_trained_itself(l1_on: Any, kind: tuple[type, type]) -> None:
    model = with_lora(
        tiny_mixtral(2),
        target_modules=["q_proj"],
        target_parameters=["experts.down_proj"],
        modules_to_save=["lm_head"],
    )
    deltas = live(model, l1_on)
    assert kinds(deltas) == [*kind, FullDelta]
    prefix = "base_model.model.model.layers.0."
    assert [delta.name for delta in deltas] == [
        f"{prefix}self_attn.q_proj",
        f"{prefix}mlp.experts.down_proj",
        "base_model.model.lm_head.modules_to_save.default.weight",
    ]


def test_all_that_is_refused_is_named_at_once() -> None:
    with pytest.raises(PaftError) as refusal:
        live(with_lora(tiny_llama(), use_dora=True))
    assert len(refusal.value.problems) == 2 * len(LINEAR)
    assert all(any(module in problem for module in LINEAR) for problem in refusal.value.problems)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(lambda: tiny_llama().requires_grad_(False), id="frozen"),
        pytest.param(lambda: with_lora(tiny_llama()).requires_grad_(False), id="frozen adapter"),
    ],
)
def test_a_model_with_nothing_to_train_is_refused(model: Any) -> None:
    with pytest.raises(PaftError, match="nothing to penalise"):
        live(model())


def test_finding_changes_nothing() -> None:
    model = with_lora(tiny_llama(), modules_to_save=["lm_head"])
    move(model)
    before = copies(model)
    measure(live(model), (0.5,))
    after = copies(model)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(parameter.grad is None for parameter in model.parameters())
