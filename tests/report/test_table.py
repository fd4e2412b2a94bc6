"""The table of arms: one set of columns for the terminal, Markdown and machines."""

from __future__ import annotations

import io
import json
from typing import Any

from rich.console import Console

from paft_plugin.evaluation.arms import MEASURES, ArmResult
from paft_plugin.report.table import markdown_table, results_content, terminal_table

RESULTS = [
    ArmResult("base", 0.02, 0.275, 0.2, 1.0, model="base"),
    ArmResult("sft", 1.0, 0.25, 0.195, 1.0, {"1e-05": 0.003}, "arms/sft", {"skill": 0.0}),
    ArmResult("dpo", None, 0.99, 0.98, 0.71, {"1e-05": 0.0031}, "arms/dpo"),
    ArmResult("sequential", 0.999, 0.95, 0.89, 0.78, model="arms/sequential"),
    ArmResult("parallel-dare_ties", 1.004, 0.9, 0.8, 0.46, model="arms/parallel-dare_ties"),
    ArmResult("paft-ties", 0.95, 0.9, 0.805, 0.98, {"1e-05": 0.9661}, "arms/paft-ties"),
]
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


def printed(results: list[ArmResult], width: int) -> str:
    console = Console(file=io.StringIO(), width=width, no_color=True)
    console.print(terminal_table(results))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_markdown() -> None:
    assert markdown_table(RESULTS) == MARKDOWN


def test_terminal_shows_the_same_cells() -> None:
    shown = [line.split() for line in printed(RESULTS, 120).splitlines() if line.strip()]
    written = [line.strip("| ").split() for line in MARKDOWN.splitlines()[2:]]
    assert shown[-len(written) :] == [[word for word in line if word != "|"] for line in written]


def test_terminal_of_80_characters_cuts_nothing() -> None:
    text = printed(RESULTS, 80)
    assert "…" not in text
    for word in ("parallel-dare_ties", "Preference", "Retained", "Alignment", "1e-05", "96.6%", "+0.05"):
        assert word in text


def test_a_name_is_neither_markup_nor_a_cell_border() -> None:
    odd = [ArmResult("[bold]a|b[/]", 0.5)]
    assert "[bold]a|b[/]" in printed(odd, 80)
    assert markdown_table(odd).splitlines()[2].startswith(r"| [bold]a\|b[/] |")


def test_no_sparsity_no_column_and_several_thresholds_in_order() -> None:
    assert "Sparsity" not in markdown_table(RESULTS[:1])
    header = markdown_table([ArmResult("sft", sparsity={"0.001": 1.0, "1e-06": 0.1, "1e-05": 0.5})]).splitlines()[0]
    assert header.index("1e-06") < header.index("1e-05") < header.index("0.001")


def test_results_json() -> None:
    content = json.loads(json.dumps(results_content(RESULTS), allow_nan=False))
    assert content["schema"] == 1
    assert [arm["arm"] for arm in content["arms"]] == [result.arm for result in RESULTS]
    assert content["arms"][1] == {
        "arm": "sft",
        "skill": 1.0,
        "preference": 0.25,
        "style": 0.195,
        "retained": 1.0,
        "alignment_tax": None,
        "stderr": {"skill": 0.0},
        "sparsity": {"1e-05": 0.003},
        "model": "arms/sft",
    }
    assert content["arms"][0]["sparsity"] is None
    assert content["arms"][5]["alignment_tax"] == 1.0 - 0.95


def test_a_score_becomes_a_result() -> None:
    score: dict[str, Any] = {m.name: 0.5 for m in MEASURES} | {
        "skill_stderr": 0.1,
        "style_stderr": None,
        "n": {},
        "abilities": {},
    }
    result = ArmResult.from_score("sft", score, sparsity={"1e-05": 0.9}, model="arms/sft")
    assert result == ArmResult("sft", 0.5, 0.5, 0.5, 0.5, {"1e-05": 0.9}, "arms/sft", {"skill": 0.1})
