"""The installed axolotl has what preflight takes from inside it."""

from __future__ import annotations

from importlib.metadata import version

import pytest


def test_the_installed_axolotl_has_every_name() -> None:
    try:
        from paft_plugin.pipeline.preflight import axolotl_internals
    except ImportError as error:
        pytest.fail(f"axolotl {version('axolotl')} lacks what preflight needs: {error}. Mend axolotl_internals.py.")
    assert axolotl_internals.parse_dataset_type("alpaca:phi") == ("alpaca", "phi")
