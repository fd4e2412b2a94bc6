"""The table of arms: the same numbers in a terminal, in Markdown and on the page."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from paft_plugin.evaluation.arms import arm_named
from paft_plugin.evaluation.results import ArmResult, Measure, Results, gather
from paft_plugin.report.arm_tables import arm_table
from paft_plugin.report.collect import readme
from paft_plugin.report.run_report import write_report
from paft_plugin.tables import as_markdown
from tests.report.runs import results_content, run_file

NAMES = ["skill", "preference", "style", "retained"]


def result(name: str, *scores: float | None, **more: Any) -> ArmResult:
    measured = {name: score for name, score in zip(NAMES, scores, strict=False) if score is not None}
    return ArmResult(arm=arm_named(name), scores=measured, **more)


def compare(arms: Sequence[ArmResult], names: Sequence[str] = NAMES, skill: str | None = "skill") -> Results:
    measures = [Measure(name, f"paft_{name}", "acc", "none", True) for name in names]
    return gather(measures, arms, [] if skill is None else [skill], ["preference"])


ARMS = compare(
    [
        result("base", 0.02, 0.275, 0.2, 1.0),
        result("sft", 1.0, 0.25, 0.195, 1.0, sparsity={"1e-05": 0.0003}, stderr={"skill": 0.0}, n={"skill": 9}),
        result("dpo", None, 0.99, 0.98, 0.71, sparsity={"1e-05": 0.0031}),
        result("sequential", 0.999, 0.95, 0.89, 0.78),
        result("parallel-dare_ties", 1.004, 0.9, 0.8, 0.46),
        result("paft-ties", 0.95, 0.9, 0.805, 0.98, sparsity={"1e-05": 0.9661}),
    ]
)
MARKDOWN = """\
| Arm                |         Skill | Preference | Style | Retained | Alignment tax | Sparsity at 1e-5 |
| ------------------ | ------------: | ---------: | ----: | -------: | ------------: | ---------------: |
| base               |         0.020 |      0.275 | 0.200 |    1.000 |             – |                – |
| sft                | 1.000 ± 0.299 |      0.250 | 0.195 |    1.000 |             – |            <0.1% |
| dpo                |             – |      0.990 | 0.980 |    0.710 |             – |             0.3% |
| sequential         |         0.999 |      0.950 | 0.890 |    0.780 |        +0.001 |                – |
| parallel-dare_ties |         1.004 |      0.900 | 0.800 |    0.460 |        −0.004 |                – |
| paft-ties          |         0.950 |      0.900 | 0.805 |    0.980 |        +0.050 |            96.6% |"""


def printed(results: Results, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, no_color=True)
    console.print(arm_table(results))
    return console.file.getvalue()  # type: ignore[attr-defined]


def whole(names: Sequence[str], thresholds: Sequence[str] = ("1e-05", "0.001")) -> Results:
    """Every arm of every measure, with the widest cells that there are."""
    arms = ("base", "sft", "sft-l1", "dpo", "sequential", "parallel-dare_ties", "paft-ties")
    sparsity = dict.fromkeys(thresholds, 1.0)
    scores = {arm: dict.fromkeys(names, 0.25 if arm == "base" else 0.5) for arm in arms}
    return compare(
        [ArmResult(arm=arm_named(arm), scores=scores[arm], sparsity=sparsity) for arm in arms], names, names[0]
    )


def test_markdown() -> None:
    assert as_markdown(arm_table(ARMS)) == MARKDOWN


def test_a_terminal_shows_the_same_cells_without_their_errors() -> None:
    shown = [line.split() for line in printed(ARMS, 120).splitlines() if line.strip()]
    written = [line.replace("1.000 ± 0.299", "1.000").replace("|", " ").split() for line in MARKDOWN.splitlines()[2:]]
    assert shown[-len(written) :] == written


def test_page_and_readme_say_the_same_of_every_score_share_and_difference(make_run: Callable[..., Path]) -> None:
    content = results_content()
    content["arms"][-1]["sparsity"]["1e-05"] = 0.0003
    page = re.sub(r"<[^>]+>", " ", write_report(make_run(results=content)).read_text(encoding="utf-8"))
    words = " ".join(html.unescape(page).split())
    results = Results.model_validate(content)
    text = readme(run_file(), results, "run")
    for row in arm_table(results).rows:
        for cell in row.cells:
            assert f" {cell.whole} " in text
            assert f" {cell.whole} " in words
    assert "<0.1%" in text
    # 1.00 → 1.00 over 200 items is no certain equality
    assert "skill 1.000 → 1.000 (+0.000 [−0.014, +0.014], = equivalent)" in text
    changes = re.findall(r"\(([+−][\d.]+ \[[^]]+\]), ", text)
    assert len(changes) == 3 * 6
    assert all(change in words for change in changes)


@pytest.mark.parametrize(
    "names", [NAMES, ["gsm8k_strict-match", "arc_challenge", "truthfulqa_mc2", "hellaswag"], ["mmlu"]]
)
def test_80_columns_hold_four_measures_and_two_thresholds(names: list[str]) -> None:
    text = printed(whole(names), 80)
    assert "…" not in text
    rows = [line for line in text.splitlines() if line.startswith(" parallel-dare_ties")]
    assert [len(row.split()) for row in rows] == [1 + len(names) + 1 + 2]
    assert "narrow" not in text


@pytest.mark.parametrize("width", [40, 60, 70])
@pytest.mark.parametrize("names", [NAMES, [f"a_measure_of_a_long_name_{number}" for number in range(9)]])
def test_where_it_is_narrow_every_score_is_there_and_what_is_not_is_said(width: int, names: list[str]) -> None:
    text = printed(whole(names), width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    rows = [line.split() for line in text.splitlines() if line.startswith(" parallel-dare_ties")]
    cells = [cell for row in rows for cell in row[1:]]
    assert cells == ["0.500"] * len(names) + ["+0.000"]
    said = " ".join(text.split())
    assert "Too narrow for sparsity at 1e-5, sparsity at 0.001: see results.json, or widen the terminal." in said


def test_no_skill_no_tax_no_sparsity_no_column_and_several_thresholds_in_order() -> None:
    plain = as_markdown(arm_table(compare(ARMS.arms[:1], skill=None)))
    assert "Sparsity" not in plain
    assert "tax" not in plain
    several = compare([ArmResult(arm=arm_named("sft"), sparsity={"0.001": 1.0, "1e-06": 0.1, "1e-05": 0.5})])
    header = as_markdown(arm_table(several)).splitlines()[0]
    assert header.index("1e-6") < header.index("1e-5") < header.index("0.001")


def test_no_number_is_a_negative_zero() -> None:
    small = compare([result("sft", 1.0), result("sequential", 1.0004), result("base", -0.0001)])
    assert "−0.000" not in as_markdown(arm_table(small))
    assert "+0.000" in as_markdown(arm_table(small))
