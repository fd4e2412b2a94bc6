"""Llama, Mistral, Qwen, Gemma, Phi, GPT and mixtures of experts: in full, with LoRA, and with LoRA on their fused experts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .architectures import ARCHITECTURES, CONV1D, EXPERTS, MIXTURES, save_base
from .conftest import LORA
from .replay import why_not_penalised
from .sweeps import WITNESSED, train_all
from .test_plugin import record

pytestmark = pytest.mark.slow
STRENGTH = 1e-3
STEPS = 2


def test_every_architecture_is_penalised_exactly(write_config: Callable[..., Path], base: Path, tmp_path: Path) -> None:
    bases = {name: save_base(name, tmp_path / "bases" / name) for name in ARCHITECTURES}
    kinds: dict[str, dict[str, Any]] = {}
    for name in ARCHITECTURES:
        kinds[f"{name}, full"] = {}
        kinds[f"{name}, lora"] = {**LORA, **(CONV1D if name == "gpt2" else {})}
    for name in MIXTURES:
        kinds[f"{name}, experts"] = {**LORA, "lora_target_parameters": EXPERTS}
    runs = {kind: {"base_model": str(bases[_name(kind)]), **changes} for kind, changes in kinds.items()}

    # One tokenizer for all, so that the rows are tokenised once.
    settings = {"tokenizer_config": str(base), "num_epochs": STEPS, "paft_l1_lambda": STRENGTH, **WITNESSED}
    outputs = train_all(write_config(tmp_path, "architectures", **settings), runs)
    problems = {kind: why_not_penalised(bases[_name(kind)], outputs[kind], STRENGTH, STEPS) for kind in kinds}
    assert problems == {kind: [] for kind in kinds}
    for name in MIXTURES:
        assert sum("experts" in tensor for tensor in record(outputs[f"{name}, experts"])["tensors"]) == 4


def _name(kind: str) -> str:
    return kind.partition(",")[0]
