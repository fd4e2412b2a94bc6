"""What keeps the penalty from being exact under a way of spreading the model is refused by the name of its setting."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from paft_plugin.penalty.settings import PenaltySettings
from paft_plugin.penalty.support import why_not_deepspeed, why_unsupported

PLAIN = PenaltySettings(1e-3)


@pytest.mark.parametrize(
    ("zero", "settings", "named"),
    [
        ({"stage": 3}, PLAIN, "deepspeed: ZeRO stage 3"),
        ({"stage": 2, "offload_optimizer": {"device": "cpu"}}, PLAIN, "deepspeed: offload_optimizer"),
        ({"stage": 1}, PenaltySettings(1e-3, mode="proximal"), "paft_l1_mode: proximal"),
        ({"stage": 2}, PenaltySettings(1e-3, target_sparsity=0.9), "paft_target_sparsity"),
    ],
    ids=["stage 3", "offload", "proximal", "target"],
)
def test_deepspeed_settings_are_refused_by_name(zero: dict[str, Any], settings: PenaltySettings, named: str) -> None:
    (problem,) = why_not_deepspeed({"zero_optimization": zero}, settings)
    assert problem.startswith(named)


@pytest.mark.parametrize("zero", [{}, {"stage": 1}, {"stage": 2, "offload_optimizer": {"device": "none"}}])
def test_stages_that_are_exact_are_not_refused(zero: dict[str, Any]) -> None:
    assert why_not_deepspeed({"zero_optimization": zero}, PLAIN) == []


def test_every_problem_is_named_at_once() -> None:
    config = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}}}
    assert len(why_not_deepspeed(config, PenaltySettings(1e-3, mode="proximal", target_sparsity=0.9))) == 4


@pytest.mark.parametrize("version", [1, 2])
def test_fsdp1_is_refused_by_name(version: int) -> None:
    trainer: Any = SimpleNamespace(
        args=SimpleNamespace(n_gpu=1, optim="sgd"),
        is_fsdp_enabled=True,
        is_deepspeed_enabled=False,
        accelerator=SimpleNamespace(state=SimpleNamespace(fsdp_plugin=SimpleNamespace(fsdp_version=version))),
    )
    assert [problem.split(": FSDP1")[0] for problem in why_unsupported(trainer, PLAIN)] == (
        ["fsdp_version: 1"] if version == 1 else []
    )


def test_more_gpus_than_processes_are_refused_by_name() -> None:
    trainer: Any = SimpleNamespace(
        args=SimpleNamespace(n_gpu=2, optim="sgd"), is_fsdp_enabled=False, is_deepspeed_enabled=False
    )
    (problem,) = why_unsupported(trainer, PLAIN)
    assert "2 GPUs through torch.nn.DataParallel" in problem
