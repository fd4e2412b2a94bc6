"""Controls that separate sparse from small: a delta changed to another one's norm or sparsity, without what that one learnt.

Norms and shares are those of the whole delta, all tensors together: L1, too, chooses where a delta is sparse. Nothing but one
tensor is in memory; whatever has to be known of all of them first is found by going through them again.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import ClassVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from paft_plugin.errors import PaftError
from paft_plugin.files import JsonFile

CONTROL_FILE = "control.json"
Tensors = Callable[[], Iterable[tuple[str, Tensor]]]
"""(name, δ in fp32) of each tensor, as often as they are asked for, in the same order."""
Keys = Callable[[str, Tensor], Tensor]
"""(name, δ) → a whole number from 0 to 2³¹ − 1 for each entry; those of the smallest are dropped first."""
HALF = 16
"""Bits of each half of a key, or of a magnitude in fp32, whose order as a whole number is its order."""
LOWER = (1 << HALF) - 1


class DeltaSize(BaseModel):
    """How large and how sparse a whole delta is."""

    model_config = ConfigDict(frozen=True)

    entries: int
    l1: float
    """‖δ‖₁."""
    l2: float
    """‖δ‖₂."""
    zeros: int
    """Entries that are exactly zero."""
    small: int
    """Entries with |δ| at or under the threshold."""

    @property
    def share(self) -> float:
        """The sparsity at the threshold."""
        return self.small / self.entries


class ControlFile(JsonFile):
    """`control.json`, beside a control: what it was made of, what it was to come to, and what it came to."""

    SCHEMA: ClassVar[int] = 1
    AGAIN: ClassVar[str] = "Run `axolotl paft run` again."

    control: str
    """What was done."""
    of: str
    """The arm of the delta that it was done to."""
    like: str | None = None
    """The arm that it was matched to."""
    threshold: float
    before: DeltaSize
    like_size: DeltaSize | None = None
    wanted: Mapping[str, float]
    """`l1` or `l2`; `share` of the entries at or under the threshold; the `factor` that this took."""
    reached: DeltaSize
    """As it is read from what was written: rounding is in it."""
    tensors: tuple[str, ...]
    """What the delta is of: those that the branch had trained. A whole model has others, too, and they are the base's."""


def measured(delta: Tensors, threshold: float) -> DeltaSize:
    """The size of a delta, summed in fp64."""
    entries = zeros = small = 0
    l1 = squares = 0.0
    for _, tensor in delta():
        sizes = tensor.abs()
        entries += sizes.numel()
        zeros += int((sizes == 0).sum())
        small += int((sizes <= threshold).sum())
        doubles = sizes.double()
        l1 += float(doubles.sum())
        squares += float(doubles.square().sum())
    return DeltaSize(entries=entries, l1=l1, l2=math.sqrt(squares), zeros=zeros, small=small)


def scaled(delta: Tensors, factor: float) -> Tensors:
    """Every entry times a factor."""
    return lambda: ((name, tensor * factor) for name, tensor in delta())


def factor_to(wanted: float, found: float) -> float:
    """What a delta is to be multiplied by so that its norm is the wanted one.

    Raises:
        PaftError: One of the norms is zero, or no number.
    """
    if not (0 < wanted < math.inf and 0 < found < math.inf):
        raise PaftError(
            f"a delta of norm {found:g} cannot be rescaled to {wanted:g}. Look at how the branches were trained."
        )
    return wanted / found


def pruned(delta: Tensors, count: int) -> Tensors:
    """Without the `count` entries of smallest magnitude; of equal ones those that come first are dropped."""
    return _without(delta, count, lambda _, tensor: tensor.abs().contiguous().view(torch.int32))


def dropped(delta: Tensors, count: int, seed: int) -> Tensors:
    """Without `count` entries that chance takes, the others times 1/(1 − p), so that the expectation is the delta (DARE)."""

    def draws(name: str, tensor: Tensor) -> Tensor:
        words = hashlib.sha256(f"{seed} {name}".encode()).digest()[:7]
        generator = torch.Generator().manual_seed(int.from_bytes(words))
        return torch.randint(1 << 31, tensor.shape, generator=generator, dtype=torch.int64).int()

    entries = sum(tensor.numel() for _, tensor in delta())
    if count >= entries:
        raise PaftError("all entries would be dropped. Take another `like`, or a lower threshold.")
    return scaled(_without(delta, count, draws), entries / (entries - count))


def _without(delta: Tensors, count: int, keys: Keys) -> Tensors:
    """Without the `count` entries of smallest keys, exactly so many."""
    cut, equal = _cut(lambda: (keys(name, tensor) for name, tensor in delta()), count)

    def kept() -> Iterator[tuple[str, Tensor]]:
        left = equal
        for name, tensor in delta():
            key = keys(name, tensor)
            drop = key < cut
            if left:
                places = (key == cut).flatten().nonzero().flatten()[:left]
                drop.view(-1)[places] = True
                left -= len(places)
            yield name, tensor.masked_fill(drop, 0)

    return kept


def _cut(keys: Callable[[], Iterable[Tensor]], count: int) -> tuple[int, int]:
    """The `count`-th smallest key, and how many of those equal to it are among the `count` smallest; in two passes of counts."""
    if count <= 0:
        return 0, 0
    upper = sum(
        (torch.bincount(key.flatten() >> HALF, minlength=1 << HALF) for key in keys()),
        torch.zeros(1 << HALF, dtype=torch.int64),
    )
    bucket, rest = bucket_of(upper, count)
    lower = torch.zeros(1 << HALF, dtype=torch.int64)
    for key in keys():
        lower += torch.bincount(key[key >> HALF == bucket] & LOWER, minlength=1 << HALF)
    low, equal = bucket_of(lower, rest)
    return bucket << HALF | low, equal


def bucket_of(counts: Tensor, count: int) -> tuple[int, int]:
    """The bucket that holds the `count`-th entry from below, and which of its own that is."""
    reached = counts.cumsum(0)
    bucket = int(torch.searchsorted(reached, count))
    return bucket, count - (int(reached[bucket - 1]) if bucket else 0)
