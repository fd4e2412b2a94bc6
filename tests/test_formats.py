"""A number is written in one way, wherever it is shown."""

from __future__ import annotations

import math

import pytest

from paft_plugin.formats import measured, number, plain_number, share, signed, threshold_key


@pytest.mark.parametrize(
    ("threshold", "label"),
    [(1e-5, "1e-5"), (2.5e-5, "2.5e-5"), (1e-10, "1e-10"), (0.001, "0.001"), (0, "0"), (1, "1")],
)
def test_labels_are_short_and_as_people_write_them(threshold: float, label: str) -> None:
    assert plain_number(threshold) == label


@pytest.mark.parametrize(("threshold", "key"), [(1e-5, "1e-05"), (2.5e-5, "2.5e-05"), (0.001, "0.001"), (0, "0.0")])
def test_keys_are_short_and_lose_nothing(threshold: float, key: str) -> None:
    assert threshold_key(threshold) == key
    assert float(key) == threshold


def test_numbers_read_as_numbers() -> None:
    assert [number(value) for value in (1.0, -0.0004, 0.1234, -2.5, 12.345)] == [
        "1.000",
        "0.000",
        "0.123",
        "−2.500",
        "12.35",
    ]
    assert [signed(value) for value in (0.1, -0.1, -0.0001)] == ["+0.100", "−0.100", "+0.000"]


def test_only_none_at_all_is_0_percent_and_only_the_whole_100() -> None:
    shares = (0.0, 1e-9, 0.0004, 0.0005, 0.002, 0.9994, 0.9996, 1.0)
    assert [share(value) for value in shares] == ["0.0%", "<0.1%", "<0.1%", "0.1%", "0.2%", "99.9%", ">99.9%", "100.0%"]
    assert [share(value, 0) for value in (0.0, 0.004, 0.5, 0.999, 1.0)] == ["0%", "<1%", "50%", ">99%", "100%"]


def test_what_is_not_there_is_a_blank() -> None:
    for form in (number, signed, share, measured):
        assert {form(None), form(math.nan), form(math.inf)} == {"–"}
