"""A base and its branches, in a folder whose name has everything that trips a path parser."""

from __future__ import annotations

import pytest
import torch

from tests.fusion.world import World, make_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """An fp32 base, so that merged tensors can be compared closely."""
    return make_world(tmp_path_factory.mktemp("wor ld+x@y") / "fp32", torch.float32)
