"""A device is checked before it is used."""

from __future__ import annotations

import pytest

from paft_plugin.errors import PaftError
from paft_plugin.machine import usable_device


def test_a_device_that_is_not_there_is_one_line() -> None:
    assert usable_device("cpu", "here") == "cpu"
    assert usable_device("auto", "here") in ("cpu", "cuda")
    with pytest.raises(PaftError, match=r"^search\.device: nonsense is not to be had here \(.+\)\. Give cpu"):
        usable_device("nonsense", "search.device")
