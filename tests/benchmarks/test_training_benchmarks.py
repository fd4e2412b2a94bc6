"""The benchmarks run and say what they measured; how fast anything is, is none of a test's business."""

from __future__ import annotations

from pathlib import Path

import pytest

from paft_plugin.benchmarks import memory, two_branches
from paft_plugin.benchmarks.two_branches import BAR, BRANCHES, measure
from paft_plugin.demo.configs import Effort

SHORT = Effort(sft_steps=4, preference_steps=2)


@pytest.mark.slow
def test_both_ways_of_training_the_branches_are_timed(tmp_path: Path) -> None:
    row = measure(tmp_path, 1, SHORT, lambda _: None)
    alone = sum(row.timings[branch][0] for branch in BRANCHES)
    ratio = row.figures[-1]
    assert (ratio.value, ratio.at_most) == (row.timings["together"][0] / alone, BAR)


def test_ways_take_turns_in_going_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = iter((6.0, 8.0))
    monkeypatch.setattr(
        two_branches,
        "_run",
        lambda _, workers, __: (10.0 if workers == 1 else next(together), dict.fromkeys(BRANCHES, 5.0)),
    )
    said: list[str] = []
    row = measure(tmp_path, 2, SHORT, said.append)
    assert [line.split(": ")[0] for line in said] == [
        f"repeat {repeat} of 2, {workers} at once" for repeat, workers in ((1, 1), (1, 2), (2, 2), (2, 1))
    ]
    ratio = row.figures[-1]
    assert (ratio.low, ratio.high, ratio.at_most) == (0.6, 0.8, BAR)
    assert (ratio.value, ratio.met) == (0.7, False)


@pytest.mark.slow
def test_the_peaks_of_real_trainings_are_measured_and_estimated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 2000}
    monkeypatch.setattr(memory, "MODELS", {"small": small})
    alone, *rows = memory.measure(tmp_path)
    assert [row.name for row in rows] == [f"small, {kind}" for kind in memory.KINDS]
    assert all(figure.value > 100 for row in (alone, *rows) for figure in row.figures if figure.unit == "MB")
    assert all(figure.met for row in rows for figure in row.figures if figure.at_least), "nothing is underestimated"
