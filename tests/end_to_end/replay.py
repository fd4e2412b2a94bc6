"""What `witness.py` wrote down of a run, against plain autograd in fp64.

Nothing here knows how paft_plugin computes: δ is what PEFT says of the adapter, or the difference of two parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from tests.end_to_end.runs import record

Named = dict[str, Tensor]
FP32_ROUNDING = 1e-6  # of an entry of s·BA, as a share of s·|B||A|


@dataclass(frozen=True)
class Step:
    """One optimizer step, as it began."""

    optimizer: str
    parameters: Named
    """What is trained, by name."""
    added: Named
    """What the optimizer found in `.grad` that no backward pass had put there, fp64."""


def steps_of(output_dir: Path) -> list[Step]:
    """The steps of a run, in order."""
    files = sorted((output_dir / "witness").iterdir(), key=lambda file: int(file.stem.partition("-")[2]))
    return [_read(file) for file in files]


def _read(file: Path) -> Step:
    with safe_open(file, "pt") as opened:
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 it is no mapping
        optimizer = opened.metadata()["optimizer"]
    names = [key.removeprefix("parameter/") for key in tensors if key.startswith("parameter/")]
    added = {name: tensors[f"seen/{name}"] - tensors[f"task/{name}"] for name in names}
    return Step(optimizer, {name: tensors[f"parameter/{name}"] for name in names}, added)


def why_not_penalised(base: Path, output_dir: Path, strength: float, steps: int) -> list[str]:
    """A problem for each way in which a run was not one of `steps` optimizer steps on L + λ‖δ‖₁.

    Every step's optimizer must have been given that gradient, with δ = θ − θ_pre, and `paft.json` must tell of the delta that
    was saved.

    Args:
        base: the base model's directory: θ_pre.
        output_dir: where axolotl saved the run, and `witness.py` its steps.
        strength: λ.
    """
    taken = steps_of(output_dir)
    model = load_saved(base, output_dir)
    start = base_parameters(base, model, taken[0].parameters)
    return [
        *([] if len(taken) == steps else [f"{len(taken)} steps instead of {steps}"]),
        *_wrong_record(output_dir, deltas_of(model, start), steps),
        *_wrong_gradients(model, start, taken, strength),
    ]


def load_saved(base: Path, output_dir: Path) -> nn.Module:
    """The model or adapter that a run saved, in fp64; the adapter on an unquantised base model."""
    if not (output_dir / "adapter_config.json").exists():
        return AutoModelForCausalLM.from_pretrained(output_dir, dtype=torch.float64)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    return PeftModel.from_pretrained(model, output_dir, is_trainable=True).double()


def base_parameters(base: Path, model: nn.Module, first: Named) -> Named:
    """θ_pre of what is trained in full.

    Args:
        first: what was trained, as the first step began; all there is to know of copies that PEFT trains instead of the base's.
    """
    if isinstance(model, PeftModel):
        return {name: parameter for name, parameter in first.items() if "lora_" not in name}
    original = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return {name: parameter.detach() for name, parameter in original.named_parameters() if name in first}


def deltas_of(model: nn.Module, start: Named) -> list[Tensor]:
    """Every δ with its graph: what PEFT adds to each weight, and parameter − start of what is trained in full."""
    products = [module.get_delta_weight("default") for module in model.modules() if isinstance(module, LoraLayer)]
    return [*products, *(p - start[name].double() for name, p in model.named_parameters() if name in start)]


def _wrong_record(output_dir: Path, saved: list[Tensor], steps: int) -> Iterator[str]:
    proof = record(output_dir)
    truth = {
        "steps_penalised": steps,
        "entries": sum(delta.numel() for delta in saved),
        "l1_norm": sum(delta.abs().sum().item() for delta in saved),
    }
    for key, value in truth.items():
        if not math.isclose(proof[key], value, rel_tol=1e-5):
            yield f"paft.json: {key}: {proof[key]} instead of {value}"


def _wrong_gradients(model: nn.Module, start: Named, taken: list[Step], strength: float) -> Iterator[str]:
    for number, step in enumerate(taken, start=1):
        expected, doubts = expected_gradients(model, start, step.parameters, strength)
        for name, gradient in expected.items():
            error = (step.added[name] - gradient).abs() - doubts[name]
            if not (error <= 1e-6 + 1e-3 * gradient.abs()).all():
                yield f"step {number}: {name}: its penalty's gradient is off by {error.max():.1e}"
    # Of the last step, since the first ones begin at δ = 0: a check that compares zeros shows nothing.
    if max(gradient.abs().max().item() for gradient in expected.values()) < strength / 10:
        yield "δ never left zero"


def expected_gradients(model: nn.Module, start: Named, now: Named, strength: float) -> tuple[Named, Named]:
    """The gradient of λ‖δ‖₁ at the parameters `now`, and how far off it fp32 may be.

    An entry of s·BA that is zero but for fp32's rounding has a sign that depends on the processor.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if name in now}
    assert trained.keys() == now.keys()
    fill(trained, now)
    deltas = deltas_of(model, start)
    norm = torch.stack([delta.abs().sum() for delta in deltas]).sum()
    gradients = torch.autograd.grad(strength * norm, list(trained.values()))

    factors = {name: parameter for name, parameter in trained.items() if "lora_" in name}
    doubts = {name: torch.zeros_like(parameter) for name, parameter in trained.items()}
    if factors:
        fill(factors, {name: now[name].abs() for name in factors})
        bounds = deltas_of(model, {})
        unsure = [delta.abs() < FP32_ROUNDING * bound for delta, bound in zip(deltas, bounds, strict=False)]
        weights = [2 * strength * mask.double() for mask in unsure]
        doubts |= zip(factors, torch.autograd.grad(bounds, list(factors.values()), weights), strict=True)
    return dict(zip(trained, gradients, strict=True)), doubts


@torch.no_grad()
def fill(parameters: Named, values: Named) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
