"""One threshold, one name."""

from __future__ import annotations

import pytest

from paft_plugin.formats import threshold_key, threshold_label


@pytest.mark.parametrize(
    ("threshold", "label"),
    [(1e-5, "1e-5"), (2.5e-5, "2.5e-5"), (1e-10, "1e-10"), (0.001, "0.001"), (0, "0"), (1, "1")],
)
def test_labels_are_short_and_as_people_write_them(threshold: float, label: str) -> None:
    assert threshold_label(threshold) == label


@pytest.mark.parametrize(("threshold", "key"), [(1e-5, "1e-05"), (2.5e-5, "2.5e-05"), (0.001, "0.001"), (0, "0.0")])
def test_keys_are_short_and_lose_nothing(threshold: float, key: str) -> None:
    assert threshold_key(threshold) == key
    assert float(key) == threshold
