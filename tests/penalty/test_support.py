"""What of DeepSpeed's configuration keeps the penalty from its gradients is refused by name, with a way out."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from paft_plugin.penalty.settings import PenaltySettings
from paft_plugin.penalty.support import why_not_deepspeed

CONSTANT = PenaltySettings(1e-3)
REFUSED: dict[str, tuple[dict[str, Any], PenaltySettings]] = {
    "deepspeed: ZeRO stage 3": ({"zero_optimization": {"stage": 3}}, CONSTANT),
    "deepspeed: offload_optimizer": (
        {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}},
        CONSTANT,
    ),
    "deepspeed: deepcompile": ({"zero_optimization": {"stage": 1}, "compile": {"deepcompile": True}}, CONSTANT),
    "paft_l1_mode: proximal": ({}, PenaltySettings(1e-3, mode="proximal")),
    "paft_target_sparsity": ({}, PenaltySettings(1e-3, target_sparsity=0.9)),
}


@pytest.mark.parametrize("named", REFUSED)
def test_a_configuration_that_hides_gradients_is_refused_by_name(named: str) -> None:
    (problem,) = why_not_deepspeed(*REFUSED[named])
    assert problem.startswith(f"{named}: ")
    assert "remove" in problem or "use" in problem


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_the_stages_that_it_reaches_are_let_through(stage: int) -> None:
    zero = {"stage": stage, "offload_optimizer": {"device": "none"}}
    assert why_not_deepspeed({"zero_optimization": zero, "compile": {"deepcompile": False}}, CONSTANT) == []


@pytest.mark.parametrize("module", ["args", "penalty.support", "penalty.strength", "deltas.proof"])
def test_what_is_asked_before_a_run_imports_nothing_heavy(module: str) -> None:
    code = (
        f"import sys, paft_plugin.{module}; print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
