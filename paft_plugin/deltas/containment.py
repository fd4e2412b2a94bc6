"""Whether a delta holds another one: a branch that continued the other's training, so that fusing both counts that one twice.

Of b = a + d, with d trained afterwards, every tensor holds a's once: ⟨a, b⟩/‖a‖² is about 1 in each. Branches that were trained
apart can have a large cosine too, if they learnt the same, but then they agree in some tensors more than in others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from paft_plugin.deltas.delta import Delta

# How they were set, and what they miss: `inspection/diagnosis/DIAGNOSIS.md`.
COSINE = 0.3
OFF_ONE = 0.2
SPREAD = 0.24
APART = (
    "To fuse the two, train {} from the base instead, or take {} out of it: task_arithmetic with the weights 1 and −1."
)

Products = tuple[float, float, float]
"""⟨a, b⟩, ‖a‖² and ‖b‖² of one tensor."""


@dataclass(frozen=True)
class Containment:
    """How far the delta b holds the delta a."""

    cosine: float
    projection: float
    """⟨a, b⟩/‖a‖²: how many times b holds a."""
    spread: float
    """Standard deviation of the projection from tensor to tensor, each weighted by its share of ‖a‖²."""

    @property
    def holds(self) -> bool:
        """Whether b holds a once, everywhere, and is not so large that this could be chance."""
        return self.cosine >= COSINE and abs(self.projection - 1) <= OFF_ONE and self.spread <= SPREAD

    def sentence(self, inner: str, outer: str) -> str:
        """What was found, with its numbers."""
        return (
            f"{outer} holds the delta of {inner} {self.projection:.2f} times (± {self.spread:.2f} from tensor to tensor; cosine "
            f"{self.cosine:.3f}), as a training does that continues another one: fused with it, {inner} counts twice."
        )


def containment(tensors: Sequence[Products]) -> Containment | None:
    """How far b holds a, from what its tensors add up to; None if one of them is zero."""
    dots, own, other = (sum(column) for column in zip(*tensors, strict=True)) if tensors else (0.0, 0.0, 0.0)
    if not (own > 0 and other > 0 and math.isfinite(own * other)):
        return None
    projection = dots / own
    deviations = (square * (dot / square - projection) ** 2 for dot, square, _ in tensors if square)
    return Containment(dots / math.sqrt(own * other), projection, math.sqrt(sum(deviations) / own))


def inside(tensors: Sequence[Products]) -> tuple[bool, Containment] | None:
    """Whether one of two deltas is within the other: (whether that is the first one, how far); None if neither is.

    Two that are all but equal hold each other: then the first is taken to have been there before.
    """
    turned = [(dot, other, own) for dot, own, other in tensors]
    for first, products in ((True, tensors), (False, turned)):
        if (found := containment(products)) is not None and found.holds:
            return first, found
    return None


def of_adapters(one: Delta, other: Delta) -> list[Products]:
    """The products of two adapters' deltas; from factors, where both have them, without the matrices."""
    found = []
    for name in sorted({*one.names, *other.names}):
        ours, theirs = (delta.factors(name) if name in delta.names else None for delta in (one, other))
        if ours and theirs:
            (left, right), (far_left, far_right) = ([each.double() for each in pair] for pair in (ours, theirs))
            dot = float(((left.T @ far_left) * (right @ far_right.T)).sum())
            squares = [float(((L.T @ L) * (R @ R.T)).sum()) for L, R in ((left, right), (far_left, far_right))]
        else:
            changes = [delta.one(name).double().flatten() if name in delta.names else None for delta in (one, other)]
            squares = [0.0 if change is None else float(change @ change) for change in changes]
            a, b = changes
            dot = 0.0 if a is None or b is None else float(a @ b)
        found.append((dot, squares[0], squares[1]))
    return found
