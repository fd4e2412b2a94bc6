"""θ_pre is a copy that training never reaches, in the parameter's own dtype, wherever it is kept."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import nn

from paft_plugin.penalty.find import fits_on_device, take_references
from paft_plugin.penalty.settings import ReferencePlace

PLACES = get_args(ReferencePlace)


@pytest.fixture(params=["straight", "turned", "strided", "scalar"])
def weights(request: pytest.FixtureRequest) -> torch.Tensor:
    torch.manual_seed(0)
    whole = torch.randn(6, 10)
    return {"straight": whole, "turned": whole.T, "strided": whole[:, ::3], "scalar": whole[0, 0]}[request.param]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("place", PLACES)
def test_a_reference_is_a_copy_that_later_steps_do_not_reach(
    place: ReferencePlace, dtype: torch.dtype, weights: torch.Tensor
) -> None:
    parameter = nn.Parameter(weights.to(dtype))
    before = parameter.detach().clone()
    references = take_references([("name", parameter)], place)
    with torch.no_grad():
        parameter.add_(1.0)
    assert list(references) == ["name"]
    reference = references["name"]
    assert torch.equal(reference, before)
    assert reference.dtype == dtype
    assert reference.device.type == "cpu"
    assert not reference.requires_grad


@pytest.mark.parametrize("place", PLACES)
def test_every_parameter_that_is_given_gets_its_own_reference(place: ReferencePlace) -> None:
    """Also from an iterator, which can be walked only once."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    references = take_references(model.named_parameters(), place)
    assert list(references) == [name for name, _ in model.named_parameters()]
    for name, parameter in model.named_parameters():
        assert torch.equal(references[name], parameter)
        assert references[name].data_ptr() != parameter.data_ptr()


def test_what_is_on_no_gpu_needs_no_room_on_one() -> None:
    assert fits_on_device([nn.Parameter(torch.ones(10))])
    assert fits_on_device([])
