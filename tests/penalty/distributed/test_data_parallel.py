"""Each step that two processes take is the one that plain autograd takes on the whole batch, whatever spreads the model.

Step by step from the recorded state, so that a sign that another CPU's rounding flips near zero can't grow; in fp64 but for
DeepSpeed, which keeps its weights in fp32. Only where two runs must be compared whole (steering, resuming) are they, in fp64.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.penalty.distributed.worker import (
    BATCH,
    CLIPPING,
    LARGE_STRENGTH,
    MICRO_BATCHES,
    RATE,
    STRENGTH,
    build,
    dtype_of,
)

pytestmark = pytest.mark.slow

WORKER = Path(__file__).with_name("worker.py")
PARALLEL = ("ddp", "fsdp2", "zero1", "zero2")
# Reentrant checkpointing but under FSDP2; three micro-batches a step.
STEPWISE = [f"{kind}-{parallel}" for parallel in PARALLEL for kind in ("full", "lora", "saved", "frozen")]
PROXIMAL = ["full-ddp-proximal", "full-fsdp2-proximal", "frozen-fsdp2-proximal"]
INSPECTED = [f"{kind}-{parallel}-inspected" for parallel in PARALLEL for kind in ("saved", "frozen")]
BF16 = ["full-zero1-bf16", "lora-zero2-bf16"]
# Case → the one that it must end like.
TWINS = {
    "lora-ddp-target": "lora-single-target",
    "lora-fsdp2-target": "lora-single-target",
    "full-fsdp2-target": "full-single-target",
    "full-fsdp2-resumed": "full-fsdp2",
    "saved-fsdp2-resumed": "saved-fsdp2",
    "full-ddp-resumed": "full-ddp",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    alone = [case for case in sorted(set(TWINS.values())) if "-single" in case]
    # DeepSpeed last: accelerate remembers it in the environment.
    spread = sorted([*STEPWISE, *INSPECTED], key=lambda case: PARALLEL.index(case.split("-")[1]))
    for options, cases in (([], alone), (launch, [*PROXIMAL, *TWINS, *spread, *BF16])):
        command = [sys.executable, *options, str(WORKER), str(directory), *cases]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900, env=_environment())
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return directory


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(WORKER.parents[3])}


def record(runs: Path, case: str) -> dict[str, Any]:
    return json.loads((runs / case / "paft.json").read_text())


class Replay:
    """A recorded run, and the same model in fp64 to be taken to any of its states."""

    def __init__(self, runs: Path, case: str) -> None:
        kind, parallel, *_ = case.split("-")
        self._tensors = load_file(runs / f"{case}.safetensors")
        self.steps = len({name.split("/")[0] for name in self._tensors if name.endswith("/rows")})
        recorded = dtype_of(parallel)
        self._model = build(kind, recorded).double()
        self._base = {name: parameter.detach().clone() for name, parameter in self.parameters().items()}
        # A rounding error of fp32 in a gradient whose entries are of the order of .1; λ itself is three orders larger.
        exact = recorded == torch.float64
        self.close = partial(torch.testing.assert_close, rtol=1e-7, atol=1e-10 if exact else 3e-6)

    def parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self._model.named_parameters() if p.requires_grad}

    def base(self, name: str) -> Tensor:
        return self._base[name]

    def at(self, step: int) -> dict[str, Tensor]:
        """The parameters before `step`, or after the last."""
        prefix = f"{step}/before/" if step < self.steps else "after/"
        return {name: self._tensors[prefix + name].double() for name in self._base}

    def gradients(self, step: int) -> dict[str, Tensor]:
        """What the optimizer was given, before clipping."""
        return {name: self._tensors[f"{step}/gradient/{name}"].double() for name in self._base}

    def synchronised(self, step: int) -> list[bool]:
        return self._tensors[f"{step}/synchronised"].tolist()

    def deltas(self, step: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Every δ before `step` or after the last, and θ_pre of each, by the name of what it changes."""
        with torch.no_grad():
            for name, value in self.at(step).items():
                self.parameters()[name].copy_(value)
        layers = {name: one for name, one in self._model.named_modules() if isinstance(one, LoraLayer)}
        deltas = {name: one.get_delta_weight("default").detach() for name, one in layers.items()}
        bases = {name: one.get_base_layer().weight.detach() for name, one in layers.items()}
        themselves = {name: p.detach() for name, p in self.parameters().items() if "lora_" not in name}
        deltas |= {name: value - self._base[name] for name, value in themselves.items()}
        return deltas, bases | {name: self._base[name] for name in themselves}

    def by_hand(self, step: int, strength: float) -> dict[str, Tensor]:
        """The gradient of the mean loss over all rows of a step, and of λ‖δ‖₁ through every whole δ."""
        parameters = self.parameters()
        with torch.no_grad():
            for name, value in self.at(step).items():
                parameters[name].copy_(value)
        rows = self._tensors[f"{step}/rows"]
        assert len(rows) == BATCH * MICRO_BATCHES
        layers = [module for module in self._model.modules() if isinstance(module, LoraLayer)]
        deltas = [layer.get_delta_weight("default") for layer in layers]
        deltas += [p - self._base[name] for name, p in parameters.items() if "lora_" not in name]
        loss = self._model(input_ids=rows, labels=rows).loss + strength * sum(delta.abs().sum() for delta in deltas)
        return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


def clipped_step(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """What SGD adds, of gradients that are clipped as torch and DeepSpeed both do it."""
    norm = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm()
    return {name: -RATE * gradient * min(1.0, CLIPPING / (norm.item() + 1e-6)) for name, gradient in gradients.items()}


@pytest.mark.parametrize("case", STEPWISE)
def test_the_optimizer_sees_the_gradient_of_the_penalised_loss(case: str, runs: Path) -> None:
    replay = Replay(runs, case)
    assert replay.steps == 4
    for step in range(replay.steps):
        expected = replay.by_hand(step, STRENGTH)
        for name, gradient in replay.gradients(step).items():
            replay.close(gradient, expected[name], msg=lambda text, n=name, s=step: f"step {s}, {n}: {text}")


@pytest.mark.parametrize("case", STEPWISE)
def test_every_step_is_that_of_the_penalised_loss_clipped(case: str, runs: Path) -> None:
    replay = Replay(runs, case)
    for step in range(replay.steps):
        moves = clipped_step(replay.by_hand(step, STRENGTH))
        before, after = replay.at(step), replay.at(step + 1)
        for name, move in moves.items():
            replay.close(after[name] - before[name], move, msg=lambda text, n=name, s=step: f"step {s}, {n}: {text}")


@pytest.mark.parametrize("case", PROXIMAL)
def test_every_proximal_step_soft_thresholds_the_delta(case: str, runs: Path) -> None:
    replay = Replay(runs, case)
    for step in range(replay.steps):
        moves = clipped_step(replay.by_hand(step, 0.0))
        before, after = replay.at(step), replay.at(step + 1)
        for name, move in moves.items():
            delta = before[name] + move - replay.base(name)
            shrunk = delta.sign() * (delta.abs() - RATE * STRENGTH).clamp(min=0)
            replay.close(after[name] - replay.base(name), shrunk, msg=lambda text, n=name: f"{n}: {text}")
    zeros = [(after[name] == replay.base(name)).double().mean().item() for name in after]
    assert max(zeros) > 0


@pytest.mark.parametrize("case", BF16)
def test_deepspeed_in_bf16_sees_the_penalty_to_its_precision(case: str, runs: Path) -> None:
    """Its gradients come out in fp32, which parameters in bf16 would refuse."""
    replay = Replay(runs, case)
    for step in range(1, replay.steps):
        expected, seen = replay.by_hand(step, LARGE_STRENGTH), replay.gradients(step)
        for name, gradient in seen.items():
            assert (gradient - expected[name]).norm() < 0.05 * expected[name].norm(), (step, name)


def test_ddp_communicates_once_a_step(runs: Path) -> None:
    """The micro-batches before the last run under `no_sync`: the penalty must come after the reduction, and once."""
    replay = Replay(runs, "full-ddp")
    assert [replay.synchronised(step) for step in range(4)] == [[False, False, True]] * 4


@pytest.mark.parametrize("case", TWINS)
def test_a_steered_or_resumed_run_ends_like_its_twin(case: str, runs: Path) -> None:
    ends = [load_file(runs / f"{one}.safetensors") for one in (case, TWINS[case])]
    ends = [{name: tensor for name, tensor in end.items() if name.startswith("after/")} for end in ends]
    assert ends[0].keys() == ends[1].keys()
    for name, expected in ends[1].items():
        torch.testing.assert_close(ends[0][name], expected, rtol=1e-6, atol=1e-8, msg=lambda t, n=name: f"{n}: {t}")


@pytest.mark.parametrize("case", TWINS)
def test_a_steered_or_resumed_run_measures_what_its_twin_does(case: str, runs: Path) -> None:
    one, twin = record(runs, case), record(runs, TWINS[case])
    for key in ("entries", "tensors", "steps_penalised", "lambda"):
        assert one[key] == twin[key]
    assert one["resumed_at_step"] == (2 if case.endswith("-resumed") else 0)
    assert one["l1_norm"] == pytest.approx(twin["l1_norm"], rel=1e-6)
    assert [point["lambda"] for point in one["history"]] == pytest.approx(
        [point["lambda"] for point in twin["history"]], rel=1e-3
    )


@pytest.mark.parametrize("case", INSPECTED)
def test_an_inspection_sees_the_whole_delta_whatever_spreads_it(case: str, runs: Path) -> None:
    """The first process logs, after the third step and the last; figures of the parameters as recorded."""
    replay = Replay(runs, case)
    assert [(runs / case / f"figures-{step}.json").exists() for step in range(1, 5)] == [False, False, True, True]
    for step in (3, 4):
        figures = json.loads((runs / case / f"figures-{step}.json").read_text())
        deltas, bases = replay.deltas(step)
        for kind in (None, "up_proj", "o_proj", "norm", "lm_head"):
            names = [name for name in deltas if kind in (None, *name.split("."))]
            if not names:
                assert f"paft/inspect/{kind}/l1_norm" not in figures
                continue
            entries = torch.cat([deltas[name].flatten() for name in names]).abs()
            base = torch.cat([bases[name].flatten() for name in names]).norm()
            prefix = f"paft/inspect/{kind}" if kind else "paft/inspect"
            expected = {"l1_norm": entries.sum(), "l2_norm": entries.norm(), "max": entries.max()}
            expected |= {"relative_l2": entries.norm() / base, "zeros": (entries == 0).double().mean()}
            for name, value in expected.items():
                assert figures[f"{prefix}/{name}"] == pytest.approx(value.item(), rel=1e-4), (step, prefix, name)
