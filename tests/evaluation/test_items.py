"""Items and held-out rows come back as they were written, and a damaged file says where."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from paft_plugin.errors import PaftError
from paft_plugin.evaluation.held_out_rows import AnswerRow, PairRow, read_rows, write_rows
from paft_plugin.evaluation.held_out_scores import summarised
from paft_plugin.evaluation.items import ItemScore, read_items, write_items

ITEMS = [
    ItemScore(measure="sft_match", item="a", value=1.0, source="data.jsonl", answer="4\n2\u2028"),
    ItemScore(measure="sft_nll", item="b", value=0.1 + 0.2),
]
PAIR = PairRow(id="a", split="test", source="pairs.jsonl", prompt=(1, 2), chosen=(3,), rejected=(4, 5))


def test_items_come_back_as_they_were(tmp_path: Path) -> None:
    write_items(tmp_path / "items.jsonl", ITEMS)
    assert read_items(tmp_path / "items.jsonl") == ITEMS


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [PAIR])
    assert read_rows(tmp_path / "rows.jsonl", PairRow) == [PAIR]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1 is damaged"),
        ('{"schema": 9}\n', "not of schema"),
        ('{"schema": 1}\n{"measure": "m", "item": "a", "value": 1}\n{"mea', "line 3 is damaged"),
        ('{"schema": 1}\n{"measure": "m", "item": "a", "value": NaN}\n', "line 2 is damaged"),
        ('{"schema": 1}\n' + "[" * 100_000, "line 2 is damaged"),
    ],
)
def test_a_damaged_file_says_where(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "items.jsonl"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(PaftError, match=said):
        read_items(file)


def test_rows_of_another_kind_are_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [PAIR])
    with pytest.raises(PaftError, match="line 2 is damaged"):
        read_rows(tmp_path / "rows.jsonl", AnswerRow)


def test_a_measure_with_an_item_that_is_not_finite_has_no_mean() -> None:
    items = [ItemScore(measure="bad", item="a", value=math.nan), ItemScore(measure="bad", item="b", value=1.0), *ITEMS]
    found = summarised(items)
    assert set(found.scores) == {"sft_match", "sft_nll"}
    assert found.n == {"bad": 2, "sft_match": 1, "sft_nll": 1}
