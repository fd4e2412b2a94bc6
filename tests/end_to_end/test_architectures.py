"""Llama, Mistral, Qwen, Gemma, Phi, GPT and mixtures of experts: in full, with LoRA, and with LoRA on their fused experts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.architectures import ARCHITECTURES, CONV1D, EXPERTS, MIXTURES, train_kinds
from tests.end_to_end.runs import LORA, record

pytestmark = pytest.mark.slow


def test_every_architecture_is_penalised_exactly(write_config: Callable[..., Path], base: Path, tmp_path: Path) -> None:
    kinds: dict[str, dict[str, Any]] = {}
    for name in ARCHITECTURES:
        kinds[f"{name}, full"] = {}
        kinds[f"{name}, lora"] = {**LORA, **(CONV1D if name == "gpt2" else {})}
    for name in MIXTURES:
        kinds[f"{name}, experts"] = {**LORA, "lora_target_parameters": EXPERTS}
    outputs, problems = train_kinds(kinds, write_config, base, tmp_path)
    assert problems == {kind: [] for kind in kinds}
    for name in MIXTURES:
        tensors = record(outputs[f"{name}, experts"])["tensors"]
        assert sum("experts" in tensor for tensor in tensors) == 4  # two layers, two stacks each
