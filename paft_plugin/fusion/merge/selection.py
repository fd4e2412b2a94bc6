"""mergekit's trimming functions, faster and with the identical outcome, whichever of several equal magnitudes it keeps.

mergekit sorts a whole tensor to learn which entries are among its k largest. The k-th value alone takes a fraction of
that, but many magnitudes are equal (a delta taken from rounded weights lies on a grid), and which of those at the
threshold are kept depends on how the sort moves equal keys. On the CPU torch sorts with the C++ library's introsort
(median of three, Hoare partition, insertion sort below 17 entries), whose order is unstable but fixed. Followed only into
the part that holds position k, it is a quickselect with the same outcome: a few linear passes, vectorised here.

Another C++ library may sort in another way, so the shortcut is checked once against torch's own sort on tensors full of
ties; where it differs, and on other devices, in other dtypes or with NaN, mergekit's own function does the work.

Signatures are those of `mergekit.sparsify`. Names: `n` entries, `k` of them come first in the sorted order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import numpy as np
import torch
from mergekit import merge_methods, sparsify
from mergekit.merge_methods.base import BasePolicy
from mergekit.sparsify import RescaleNorm, rescaled_masked_tensor
from numpy.typing import NDArray
from torch import Tensor

from paft_plugin.errors import PaftError
from paft_plugin.fusion.mergekit_internals import trimming_by

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

INSERTION = 16
"""The introsort leaves parts of up to this many entries to an insertion sort, which is stable."""

# mergekit's own, held here because `fast_selection` puts the functions below in their place for the time of a merge.
OWN_MAGNITUDE = sparsify.magnitude
OWN_OUTLIERS = sparsify.magnitude_outliers
OWN_BERNOULLI = sparsify.bernoulli
OWN_DELLA = sparsify.della_magprune


def magnitude(tensor: Tensor, density: float, rescale_norm: RescaleNorm | None = None) -> Tensor:
    """Keep the ``int(density · n)`` entries of greatest magnitude, at least one (TIES' trim)."""
    if density >= 1 or density <= 0 or not _can_select(tensor):
        return OWN_MAGNITUDE(tensor, density, rescale_norm)
    w = tensor.abs().reshape(-1).float().numpy()
    mask = first_in_order(w, max(1, int(density * w.size)))
    if mask is None:
        return OWN_MAGNITUDE(tensor, density, rescale_norm)
    return rescaled_masked_tensor(tensor, torch.from_numpy(mask).reshape_as(tensor), rescale_norm)


def magnitude_outliers(
    tensor: Tensor, density: float, rescale_norm: RescaleNorm | None = None, gamma: float = 0.01
) -> Tensor:
    """Drop the ``int(gamma · n)`` entries of greatest magnitude, then the smallest (Model Breadcrumbs)."""
    n = tensor.numel()
    kept, outliers = int(density * n), int(gamma * n)
    small = max(0, n - kept - outliers)
    if density >= 1 or kept < 0 or gamma < 0 or not _can_select(tensor):
        return OWN_OUTLIERS(tensor, density, rescale_norm, gamma)
    # Ascending order of the magnitudes is descending order of their negatives.
    w = -tensor.abs().reshape(-1).float().numpy()
    upper = first_in_order(w.copy(), min(n, small + kept))
    lower = first_in_order(w, small)
    if upper is None or lower is None:
        return OWN_OUTLIERS(tensor, density, rescale_norm, gamma)
    mask = torch.from_numpy(upper & ~lower)
    return rescaled_masked_tensor(tensor, mask.reshape_as(tensor), rescale_norm)


def bernoulli(tensor: Tensor, density: float, rescale_norm: RescaleNorm | None = None) -> Tensor:
    """Keep each entry with probability `density` (DARE): the draws of `torch.bernoulli`, without its tensor of p."""
    if not 0 <= density < 1 or tensor.device.type != "cpu" or tensor.dtype != torch.float32 or not _same_draws():
        return OWN_BERNOULLI(tensor, density, rescale_norm)
    # As a Python number `density` would be compared in double precision, where 0.1 is another number.
    mask = torch.empty_like(tensor).uniform_() < torch.tensor(density, dtype=torch.float32)
    return rescaled_masked_tensor(tensor, mask, rescale_norm)


def della_magprune(tensor: Tensor, density: float, epsilon: float, rescale_norm: RescaleNorm | None = None) -> Tensor:
    """Keep each entry with a probability that grows with its rank within its row, from ``density ∓ epsilon`` (DELLA)."""
    fits = tensor.device.type == "cpu" and tensor.dtype == torch.float32 and tensor.numel() > 0 and tensor.dim() <= 2
    # A row of one entry has no ranks: mergekit's division by zero is mergekit's to report.
    fits = fits and tensor.shape[-1] > 1
    if not fits or density - epsilon <= 0 or density + epsilon >= 1 or not _same_draws():
        return OWN_DELLA(tensor, density, epsilon, rescale_norm)
    rows = tensor.unsqueeze(0) if tensor.dim() < 2 else tensor
    order = torch.argsort(rows.abs(), dim=1, descending=False)
    # The ranks are the inverse permutation; mergekit sorts a second time for them.
    places = torch.arange(rows.shape[1], dtype=torch.float32)
    ranks = torch.empty_like(rows).scatter_(1, order, places.expand_as(rows))
    rank_norm = (ranks / (rows.shape[1] - 1)).clamp(0, 1)
    probabilities = (density - epsilon) + rank_norm * 2 * epsilon
    mask = torch.empty_like(rows).uniform_() < probabilities
    return rescaled_masked_tensor(rows, mask, rescale_norm).reshape(tensor.shape)


def first_in_order(w: Floats, k: int) -> NDArray[np.bool_] | None:
    """Mask of the `k` entries that `torch.argsort(w, descending=True)` puts first; of entries equal to 0, maybe others.

    (Which zeros are kept changes nothing: kept or not, they are 0.) The contents of `w`, ``(n,)``, are undefined afterwards.
    None where only the sort itself can tell: NaN, or an order of entries that makes the introsort turn to a heapsort.
    """
    if k <= 0 or k >= w.size:
        return np.full(w.size, k > 0)
    threshold = np.partition(w, w.size - k)[w.size - k]
    if np.isnan(threshold) or np.isnan(w.max()):
        return None
    mask = w > threshold
    ties = np.flatnonzero(w == threshold)
    wanted = k - int(np.count_nonzero(mask))
    if threshold == 0 or wanted == ties.size:
        mask[ties] = True
        return mask
    chosen = _ties_before(w, k, threshold)
    if chosen is None:
        return None
    mask[chosen] = True
    return mask


def _ties_before(keys: Floats, k: int, threshold: np.float32) -> Integers | None:
    """Indices of the entries equal to `threshold`, the k-th greatest, that an introsort moves to the first `k` places."""
    places = np.arange(keys.size)
    chosen = [places[:0]]
    depth = 2 * (keys.size.bit_length() - 1)
    while keys.size > INSERTION:
        if depth == 0:
            return None
        depth -= 1
        pivot = _median_to_front(keys, places)
        left, right, cut = _swaps(keys, pivot)
        keys[left], keys[right] = keys[right], keys[left]
        places[left], places[right] = places[right], places[left]
        if k <= cut:
            keys, places = keys[:cut], places[:cut]
        else:
            if pivot == threshold:  # else all that stays behind is greater
                chosen.append(places[:cut][keys[:cut] == threshold])
            keys, places, k = keys[cut:], places[cut:], k - cut
    first = np.argsort(-keys, kind="stable")[:k]
    chosen.append(places[first[keys[first] == threshold]])
    return np.concatenate(chosen)


def _median_to_front(keys: Floats, places: Integers) -> np.float32:
    """Swap the median of the second, middle and last entry to the front, as the introsort does, and return it."""
    a, b, c = 1, keys.size // 2, keys.size - 1
    if keys[a] > keys[b]:
        median = b if keys[b] > keys[c] else c if keys[a] > keys[c] else a
    else:
        median = a if keys[a] > keys[c] else c if keys[b] > keys[c] else b
    for array in (keys, places):
        array[0], array[median] = array[median], array[0]
    pivot: np.float32 = keys[0]
    return pivot


def _swaps(keys: Floats, pivot: np.float32) -> tuple[Integers, Integers, int]:
    """The swaps of a Hoare partition in descending order around ``keys[0]``, and where its second part begins.

    From the left it stops at entries ≤ pivot, from the right at entries ≥ pivot, and swaps the i-th of both while they
    have not met.
    """
    rest = keys[1:]
    greater = int(np.count_nonzero(rest > pivot))
    not_smaller = int(np.count_nonzero(rest >= pivot))
    # They meet in between, so each side need be searched no further.
    left = np.flatnonzero(rest[:not_smaller] <= pivot) + 1
    right = np.flatnonzero(rest[greater:] >= pivot)[::-1] + 1 + greater
    most = min(left.size, right.size)
    count = int(np.count_nonzero(left[:most] < right[:most]))
    stop_left = int(left[count]) if count < left.size else not_smaller + 1
    stop_right = int(right[count - 1]) if count else stop_left
    return left[:count], right[:count], min(stop_left, stop_right)


def _can_select(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.numel() > 0 and tensor.is_floating_point() and _same_order()


@cache
def _same_order() -> bool:
    """Whether torch's sort on this machine moves equal keys as `first_in_order` assumes."""
    generator = np.random.default_rng(0)
    for n, values in ((500, 3), (3000, 40), (3000, 2000)):
        w = (1 + generator.integers(values, size=n)).astype(np.float32)
        for keys in (w, -w):
            order = torch.argsort(torch.from_numpy(keys), descending=True).numpy()
            for k in range(1, n, n // 7):
                expected = np.zeros(n, dtype=bool)
                expected[order[:k]] = True
                found = first_in_order(keys.copy(), k)
                if found is None or not np.array_equal(found, expected):
                    return False
    ascending = torch.sort(torch.from_numpy(w)).indices
    return torch.equal(ascending, torch.argsort(torch.from_numpy(-w), descending=True))


@cache
def _same_draws() -> bool:
    """Whether a comparison with uniform numbers draws what `torch.bernoulli` draws; leaves torch's generator as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn, after = torch.bernoulli(torch.full((1000,), 0.3)), torch.rand(1)
        torch.manual_seed(0)
        compared, then = torch.empty(1000).uniform_() < torch.tensor(0.3), torch.rand(1)
    return torch.equal(drawn, compared.float()) and torch.equal(after, then)


_REPLACED: dict[str, Callable[..., Tensor]] = {
    "magnitude": magnitude,
    "magnitude_outliers": magnitude_outliers,
    "bernoulli": bernoulli,
    "della_magprune": della_magprune,
}


def fast_selection() -> AbstractContextManager[None]:
    """For the time of the context mergekit's methods trim with the functions above: the same outcome, sooner."""
    return trimming_by(_REPLACED)


def fuse_tensors(method: str, parameters: Mapping[str, Any], base: Tensor, branches: Sequence[Tensor]) -> Tensor:
    """One tensor fused from a base and its branches, as mergekit fuses it.

    A method that takes no base (linear, karcher) gets the branches alone. One that goes from a base to a single other
    model (slerp, nearswap, arcee_fusion) goes from the first branch to the second, if there are two. Random methods draw
    from torch's global generator.

    Args:
        method: As mergekit calls it.
        parameters: By mergekit's names; those of the inputs as a number for all of them, or as a list in the branches' order.
        base: θ_pre's tensor, any shape. In fp32, as in a recipe with ``dtype: float32``; the result has the inputs' dtype.
        branches: The branches' tensors (not their deltas), in the base's shape.

    Raises:
        PaftError: No such method, or parameters or inputs that it does not take.
    """
    try:
        contract = merge_methods.get(method).spec.contract
        pair = contract.max_inputs == 2 and len(branches) == 2
        with_base = contract.base in (BasePolicy.REQUIRED, BasePolicy.OPTIONAL) and not pair
        inputs = [base, *branches] if with_base else list(branches)
        with fast_selection(), torch.no_grad():
            return merge_methods.merge_tensors(
                inputs, method, parameters=parameters, base_index=0 if with_base or pair else None
            )
    except (RuntimeError, TypeError, ValueError) as error:
        raise PaftError(f"{method}: {error}. Correct the parameters, or take another method.") from error
