"""What an inspection counts and sums is what plain fp64 arithmetic finds in the δ that PEFT itself would merge."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

from paft_plugin.deltas.measures import effective_rank, hoyer
from paft_plugin.penalty.find import find_live_deltas, take_references, trained_themselves
from paft_plugin.penalty.inspector import base_square
from paft_plugin.penalty.live import ExpertsDelta, LowRankDelta, measure
from paft_plugin.penalty.tally import DROPPED_BITS, FINITE, LiveTally, _tally_product, measurable, tally, total
from tests.inspection import brute
from tests.penalty.adapters import TRAINED
from tests.penalty.models import (
    clear_threshold,
    copies,
    deltas_in_double,
    entries_of,
    live,
    move,
    of_entries,
    tiny_llama,
    with_lora,
)


def hoyer_of(one: LiveTally) -> float | None:
    return hoyer(one.entries, one.l1, one.square)


@pytest.mark.parametrize("kind", TRAINED)
def test_every_kind_of_delta_is_tallied_as_what_peft_merges(kind: str, tmp_path: Path) -> None:
    model = TRAINED[kind](tmp_path)
    base, deltas = copies(model), live(model)
    move(model)
    expected, _ = deltas_in_double(model, base)
    entries = entries_of(expected).abs()
    threshold = clear_threshold(entries)
    one = total(tally(measurable(delta), (threshold,)) for delta in deltas)
    assert one.entries == entries.numel()
    assert one.l1 == pytest.approx(entries.sum().item(), rel=1e-6)
    assert one.square == pytest.approx(entries.square().sum().item(), rel=1e-6)
    assert one.largest == pytest.approx(entries.max().item(), rel=1e-5)
    assert one.small[1] == (entries <= threshold).sum()
    assert one.bins.sum() == one.entries
    size, root = math.sqrt(entries.square().sum()), math.sqrt(entries.numel())
    assert hoyer_of(one) == pytest.approx((root - entries.sum().item() / size) / (root - 1), rel=1e-5)
    for share in (0.01, 0.1):
        exact = entries.sort(descending=True).values
        held = exact[: int(share * entries.numel())].sum() / exact.sum()
        # What is left over of a whole number of entries, and 3 % of each entry's size.
        assert one.magnitudes.top_share(share) == pytest.approx(
            held.item(), rel=0.03, abs=exact[0].item() / exact.sum().item()
        )


@pytest.mark.parametrize("kind", TRAINED)
def test_the_sparsity_and_norm_are_those_that_are_logged_anyway(kind: str, tmp_path: Path) -> None:
    model = TRAINED[kind](tmp_path)
    deltas = live(model)
    move(model)
    measured, one = measure(deltas, (0.3, 1.0)), total(tally(measurable(delta), (0.3, 1.0)) for delta in deltas)
    assert one.l1 == pytest.approx(measured.l1_norm, rel=1e-12)
    assert [count / one.entries for count in one.small[1:].tolist()] == list(measured.sparsity.values())


@pytest.mark.parametrize("kind", ["experts", "one expert", "rslora", "embedding", "8 bits"])
def test_the_effective_rank_is_that_of_the_singular_values(kind: str, tmp_path: Path) -> None:
    model = TRAINED[kind](tmp_path)
    deltas = [measurable(delta) for delta in live(model)]
    move(model)
    products = []
    for module in model.modules():
        if isinstance(module, LoraLayer) and "default" in module.scaling:
            whole = module.get_delta_weight("default").double()
            products += list(whole) if whole.dim() == 3 else [whole]
    exact = sum(brute.effective_rank(product.detach()) for product in products)
    one = total(tally(delta, ()) for delta in deltas)
    assert one.products == len(products)
    # A product in fp32 has some rank of rounding, which the fp64 factors have not.
    assert one.rank == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_orthogonal_factors_have_their_whole_rank(rank: int) -> None:
    torch.manual_seed(0)
    A = torch.linalg.qr(torch.randn(30, rank)).Q.T
    B = torch.linalg.qr(torch.randn(20, rank)).Q
    assert effective_rank(B, A) == pytest.approx(rank, rel=1e-6)
    assert effective_rank(1e-6 * B, A) == pytest.approx(rank, rel=1e-6)
    assert effective_rank(torch.zeros_like(B), A) == 0
    assert math.isnan(effective_rank(B * math.inf, A))


def base_by_hand(model: nn.Module, name: str, base: dict[str, Tensor]) -> Tensor:
    """θ_pre of the delta called `name`."""
    if name in base:
        return base[name]
    try:
        layer = model.get_submodule(name)
    except AttributeError:
        return model.get_submodule(name.rpartition(".")[0]).get_param()
    return dequantize_module_weight(layer.get_base_layer())


@pytest.mark.parametrize("kind", [kind for kind in TRAINED if kind != "torch attention"])
def test_the_base_norm_is_that_of_the_weights_before_training(kind: str, tmp_path: Path) -> None:
    model = TRAINED[kind](tmp_path)
    base, deltas = copies(model), [measurable(delta) for delta in live(model)]
    move(model)
    for delta in deltas:
        expected = base_by_hand(model, delta.name, base).double().square().sum().item()
        assert base_square(model, delta) == pytest.approx(expected, rel=1e-6), delta.name


@pytest.mark.parametrize("kind", ["8 bits", "4 bits"])
def test_reading_a_quantised_base_leaves_it_alone(kind: str, tmp_path: Path) -> None:
    """Before its first forward pass, which moves the scales about; after it; and as an evaluation leaves it."""
    model, twin = (TRAINED[kind](tmp_path / name).train() for name in ("one", "twin"))
    deltas, ids = [measurable(delta) for delta in live(model)], torch.arange(8)[None]
    squares = [base_square(model, delta) for delta in deltas]
    assert torch.equal(model(input_ids=ids).logits, twin(input_ids=ids).logits)
    assert [base_square(model, delta) for delta in deltas] == squares
    assert torch.equal(model(input_ids=ids).logits, twin(input_ids=ids).logits)
    model.eval()(input_ids=ids)
    # None where bitsandbytes has repacked it for this CPU.
    assert all(base_square(model, delta) in (square, None) for delta, square in zip(deltas, squares, strict=True))


def test_a_base_that_is_no_weight_is_not_known(tmp_path: Path) -> None:
    model = TRAINED["torch attention"](tmp_path)
    assert base_square(model, measurable(live(model)[0])) is None
    narrow = with_lora(tiny_llama())
    layer = next(module for module in narrow.modules() if isinstance(module, LoraLayer))
    layer.get_base_layer().weight.data = layer.get_base_layer().weight.data.to(torch.float8_e4m3fn)
    assert base_square(narrow, measurable(live(narrow)[0])) is None


def test_what_the_norm_is_taken_of_does_not_change_what_is_seen() -> None:
    model = with_lora(tiny_llama())
    products = live(model)
    move(model)
    factors = find_live_deltas(model, take_references(trained_themselves(model), "device"), "factors")
    for product, factor in zip(products, factors, strict=True):
        one, other = measurable(factor), measurable(product)
        assert isinstance(one, LowRankDelta)
        assert isinstance(other, LowRankDelta)
        # Field by field: since Python 3.13 `==` of dataclasses compares tensors that are the same one, too.
        assert (one.name, id(one.A), id(one.B), one.scale) == (other.name, id(other.A), id(other.B), other.scale)


def test_histogram_counts_are_exact() -> None:
    """In fp64 by the edges themselves; over many blocks, with zeros, tiny and huge entries."""
    torch.manual_seed(0)
    entries = torch.cat([torch.randn(300_000) * 10.0 ** torch.randint(-9, 3, (300_000,)), torch.zeros(1000)])
    entries[:3] = torch.tensor([1e-42, 3e38, -(2.0**-20)])
    one = of_entries(entries)
    edges = (torch.arange(FINITE, dtype=torch.int32) << DROPPED_BITS).view(torch.float32).double()
    edges = torch.cat([edges, torch.tensor([2.0**128], dtype=torch.float64)])
    assert one.bins[:FINITE].tolist() == torch.histogram(entries.abs().double(), edges).hist.tolist()
    assert one.bins.sum() == len(entries)
    assert one.small.tolist() == [1000]


@pytest.mark.parametrize("size", [1e-6, 0.3, 7e4])
def test_equal_entries_are_not_sparse_and_a_single_one_is(size: float) -> None:
    equal, single = torch.full((400,), size), torch.zeros(400)
    single[7] = -size
    assert hoyer_of(of_entries(equal)) == pytest.approx(0, abs=1e-5)
    assert of_entries(equal).magnitudes.top_share(0.01) == pytest.approx(0.01)
    assert hoyer_of(of_entries(single)) == pytest.approx(1, abs=1e-5)
    assert of_entries(single).magnitudes.top_share(0.01) == pytest.approx(1)


def test_a_scale_of_zero_leaves_nothing() -> None:
    one = _tally_product(torch.randn(2, 9), torch.randn(5, 2), 0.0, (1e-5,))
    assert (one.l1, one.square, one.largest) == (0, 0, 0)
    assert one.small.tolist() == [45, 45]
    assert hoyer_of(one) is None
    assert one.magnitudes.top_share(0.01) is None


def test_a_diverged_delta_is_tallied_as_such() -> None:
    entries = torch.randn(50)
    entries[3], entries[4] = math.nan, math.inf
    healthy = of_entries(torch.randn(50))
    for one in (of_entries(entries), of_entries(entries) + healthy, healthy + of_entries(entries)):
        assert math.isnan(one.largest)
        assert not math.isfinite(one.l1)
        assert one.magnitudes.top_share(0.01) is None


def test_experts_are_one_delta_of_many_products() -> None:
    model = TRAINED["experts"](Path())
    move(model)
    (stack, *_) = [delta for delta in live(model) if isinstance(delta, ExpertsDelta)]
    assert tally(stack, ()).products == stack.experts == 3
