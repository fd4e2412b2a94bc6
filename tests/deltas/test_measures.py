"""A delta has the same measures while it is trained and once it lies on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from paft_plugin.inspection.inspect import inspect_deltas
from paft_plugin.inspection.measures import Measures
from paft_plugin.penalty.inspector import Inspector
from tests.deltas.builders import make_base
from tests.penalty.models import live

TARGET = "model.layers.0.mlp.gate_proj"
SIZES = [1.0, *[0.1] * 15]


def orthonormal(rows: int, columns: int) -> Tensor:
    return torch.linalg.qr(torch.randn(rows, columns)).Q


@dataclass
class Both:
    """What is said of one delta by the inspector in training, by name, and by an inspection of its files."""

    live: dict[str, float]
    stored: Measures


@pytest.fixture
def both(tmp_path: Path) -> Both:
    """Of an adapter with the singular values `SIZES`."""
    base = make_base(tmp_path / "base")
    config = LoraConfig(r=16, lora_alpha=16, target_modules=[TARGET], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    (delta,) = live(model)
    torch.manual_seed(0)
    with torch.no_grad():
        delta.A.copy_(orthonormal(32, 16).T)  # type: ignore[attr-defined]
        delta.B.copy_(orthonormal(48, 16) * torch.tensor(SIZES))  # type: ignore[attr-defined]
    model.save_pretrained(tmp_path / "adapter")
    logged: dict[str, float] = {}
    arguments = TrainingArguments(output_dir=str(tmp_path / "trained"), report_to=[], use_cpu=True)
    inspector = Inspector(Trainer(model, arguments), every=1, thresholds=(1e-5,))
    inspector._trainer.callback_handler.on_log = lambda *arguments: logged.update(arguments[-1])  # type: ignore[method-assign]
    inspector.begin([delta])
    inspector.after_last_step()
    (tensor,) = inspect_deltas(base, {"sft": tmp_path / "adapter"}).delta("sft").figures.tensors
    return Both({name.removeprefix("paft/inspect/"): value for name, value in logged.items()}, tensor.figures)


def test_the_effective_rank_is_the_participation_ratio(both: Both) -> None:
    """(1 + 15 · 0.01)² / (1 + 15 · 0.0001)."""
    assert both.live["effective_rank"] == pytest.approx(1.3205, abs=1e-4)
    assert both.stored.effective_rank is not None
    assert both.stored.effective_rank.value == pytest.approx(both.live["effective_rank"], rel=1e-9)


def test_norms_and_concentration_are_the_same(both: Both) -> None:
    assert both.stored.l1 == pytest.approx(both.live["l1_norm"], rel=1e-6)
    assert both.stored.l2 == pytest.approx(both.live["l2_norm"], rel=1e-6)
    assert both.stored.hoyer == pytest.approx(both.live["hoyer"], rel=1e-5)
    # In training an entry is known to 3 % of its size.
    assert both.stored.top_1_percent == pytest.approx(both.live["top_1_percent_mass"], rel=0.03)
