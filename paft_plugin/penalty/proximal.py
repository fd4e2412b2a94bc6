"""The proximal step of the L1 penalty: soft-thresholding of δ, which leaves exact zeros.

The minimiser of ½‖δ' − δ‖² + τ‖δ'‖₁ is sign(δ)·max(|δ| − τ, 0), applied after an optimizer step of length η with τ = ηλ
(proximal gradient descent). torchao's prototype PAT does the same to *weights*; here it is done to θ − θ_pre.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from paft_plugin.errors import PaftError
from paft_plugin.penalty.l1 import difference_blocks, flattened, memory_order


@torch.no_grad()
def shrink_(parameter: Tensor, reference: Tensor | None, amount: float) -> None:
    """θ ← θ_pre + soft(θ − θ_pre, amount), in place.

    An entry with |θ − θ_pre| ≤ amount becomes θ_pre bit for bit. θ is in fp32, because lower precisions round an amount as small
    as ηλ away; θ_pre has its shape, lies on any device, and is 0 if None.
    """
    order = memory_order(parameter)
    flat = parameter.permute(tuple(order)).view(-1)
    flat_reference = None if reference is None else flattened(reference, order)
    for block, delta in difference_blocks(parameter, reference, order):
        here = flat[block]
        base = torch.zeros_like(here) if flat_reference is None else flat_reference[block].to(here.device)
        # θ − τ·sign(δ) and not θ_pre + …: what is added to θ_pre again would not always be θ.
        flat[block] = torch.where(delta.abs() <= amount, base, here - amount * delta.sign())


def step_sizes(optimizer: Optimizer) -> Callable[[nn.Parameter], float]:
    """Each parameter's step size η: the learning rate of its group, as the step that was just taken used it.

    Raises:
        PaftError: if the optimizer makes its step sizes of something else: an Adafactor of relative steps or scaled parameters.
    """
    for group in optimizer.param_groups:
        if own := [key for key in ("relative_step", "scale_parameter") if group.get(key)]:
            inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
            raise PaftError(
                f"paft_l1_mode: proximal: {own[0]}: {type(inner).__name__} makes its step sizes of more than the learning "
                f"rate: set {own[0]}=False, or use paft_l1_mode: subgradient"
            )
    rates = {id(parameter): float(group["lr"]) for group in optimizer.param_groups for parameter in group["params"]}
    return lambda parameter: rates[id(parameter)]
