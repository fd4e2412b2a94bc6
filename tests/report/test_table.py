"""The table of arms: one set of columns for the terminal, Markdown and machines."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence

import pytest
from rich.console import Console

from paft_plugin.evaluation.results import ArmResult, Comparison, Measure
from paft_plugin.report.table import markdown_table, results_content, terminal_table

NAMES = ["skill", "preference", "style", "retained"]
BRANCHES = frozenset({"sft", "dpo"})


def result(arm: str, *scores: float | None, sparsity: dict[str, float] | None = None, **more: object) -> ArmResult:
    measured = {name: score for name, score in zip(NAMES, scores, strict=False) if score is not None}
    return ArmResult(arm, measured, sparsity=sparsity, **more)  # type: ignore[arg-type]


def compare(results: Sequence[ArmResult], names: Sequence[str] = NAMES, skill: str | None = "skill") -> Comparison:
    measures = [Measure(name, f"paft_{name}", "acc", "none", True) for name in names]
    return Comparison(measures, results, BRANCHES, skill, "preference")


ARMS = compare(
    [
        result("base", 0.02, 0.275, 0.2, 1.0, model="base"),
        result("sft", 1.0, 0.25, 0.195, 1.0, sparsity={"1e-05": 0.003}, model="arms/sft", stderr={"skill": 0.0}, n={"skill": 9}),
        result("dpo", None, 0.99, 0.98, 0.71, sparsity={"1e-05": 0.0031}, model="arms/dpo"),
        result("sequential", 0.999, 0.95, 0.89, 0.78, model="arms/sequential"),
        result("parallel-dare_ties", 1.004, 0.9, 0.8, 0.46, model="arms/parallel-dare_ties"),
        result("paft-ties", 0.95, 0.9, 0.805, 0.98, sparsity={"1e-05": 0.9661}, model="arms/paft-ties"),
    ]
)  # fmt: skip
MARKDOWN = """\
| Arm                | Skill | Preference | Style | Retained | Alignment tax | Sparsity at 1e-05 |
| ------------------ | ----: | ---------: | ----: | -------: | ------------: | ----------------: |
| base               |  0.02 |       0.28 |  0.20 |     1.00 |             – |                 – |
| sft                |  1.00 |       0.25 |  0.20 |     1.00 |             – |              0.3% |
| dpo                |     – |       0.99 |  0.98 |     0.71 |             – |              0.3% |
| sequential         |  1.00 |       0.95 |  0.89 |     0.78 |         +0.00 |                 – |
| parallel-dare_ties |  1.00 |       0.90 |  0.80 |     0.46 |         +0.00 |                 – |
| paft-ties          |  0.95 |       0.90 |  0.81 |     0.98 |         +0.05 |             96.6% |
"""


def printed(comparison: Comparison, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, no_color=True)
    console.print(terminal_table(comparison, width))
    return console.file.getvalue()  # type: ignore[attr-defined]


def whole(names: Sequence[str], thresholds: Sequence[str] = ("1e-05", "0.001")) -> Comparison:
    """Every arm of every measure, with the widest cells that there are."""
    arms = ("base", "sft", "sft-l1", "dpo", "sequential", "parallel-dare_ties", "paft-ties")
    sparsity = dict.fromkeys(thresholds, 1.0)
    return compare([ArmResult(arm, dict.fromkeys(names, 0.5), sparsity=sparsity) for arm in arms], names, names[0])


def test_markdown() -> None:
    assert markdown_table(ARMS) == MARKDOWN


def test_terminal_shows_the_same_cells() -> None:
    shown = [line.split() for line in printed(ARMS, 120).splitlines() if line.strip()]
    written = [line.strip("| ").split() for line in MARKDOWN.splitlines()[2:]]
    assert shown[-len(written) :] == [[word for word in line if word != "|"] for line in written]


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
    assert cells == ["0.50"] * len(names) + ["+0.00"]
    said = " ".join(text.split())
    assert "Too narrow for the sparsity at 1e-05, 0.001: see results.json, or widen the terminal." in said


def test_a_name_is_neither_markup_nor_a_cell_border() -> None:
    odd = compare([ArmResult("[bold]a|b[/]", {"[x]y|z": 0.5})], ["[x]y|z"], None)
    assert "[bold]a|b[/]" in printed(odd, 80)
    assert "[x]y|z" in printed(odd, 80)
    header, _, row = markdown_table(odd).splitlines()
    assert row.startswith(r"| [bold]a\|b[/] |")
    assert r"[x]y\|z" in header


def test_no_skill_no_tax_no_sparsity_no_column_and_several_thresholds_in_order() -> None:
    plain = markdown_table(compare(ARMS.results[:1], skill=None))
    assert "Sparsity" not in plain
    assert "tax" not in plain
    several = compare([ArmResult("sft", sparsity={"0.001": 1.0, "1e-06": 0.1, "1e-05": 0.5})])
    header = markdown_table(several).splitlines()[0]
    assert header.index("1e-06") < header.index("1e-05") < header.index("0.001")


def test_no_number_is_a_negative_zero() -> None:
    small = compare([result("sft", 1.0), result("sequential", 1.004), result("base", -0.001)])
    assert "-0.00" not in markdown_table(small)
    assert "+0.00" in markdown_table(small)


def test_results_json() -> None:
    content = json.loads(json.dumps(results_content(ARMS), allow_nan=False))
    arms = content.pop("arms")
    assert content == {
        "schema": 2,
        "measures": [
            {"name": name, "task": f"paft_{name}", "metric": "acc", "filter": "none", "higher_is_better": True}
            for name in NAMES
        ],
        "skill": "skill",
        "preference": "preference",
        "thresholds": ["1e-05"],
    }
    assert [arm["arm"] for arm in arms] == [each.arm for each in ARMS.results]
    assert arms[1] == {
        "arm": "sft",
        "scores": {"skill": 1.0, "preference": 0.25, "style": 0.195, "retained": 1.0},
        "stderr": {"skill": 0.0},
        "n": {"skill": 9},
        "alignment_tax": None,
        "sparsity": {"1e-05": 0.003},
        "model": "arms/sft",
    }
    assert arms[0]["sparsity"] is None
    assert arms[5]["alignment_tax"] == 1.0 - 0.95
