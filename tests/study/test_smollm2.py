"""What the study of a real model is made of, as far as it needs neither the model nor its generators."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from langdetect import DetectorFactory, detect_langs

from studies.smollm2 import bigbench, preference
from studies.smollm2.skill import FAMILIES


@pytest.mark.parametrize(
    ("family", "metadata", "answer", "taught"),
    [
        ("chain_sum", {"expression": "4 - 16 + 3"}, "-9", "4 - 16 = -12. -12 + 3 = -9. The answer is -9."),
        ("products", {"expression": "83 * 33"}, "2739", "83 * 33 = 2490 + 249 = 2739. The answer is 2739."),
        ("products", {"expression": "93 * 70"}, "6510", "93 * 70 = 6510. The answer is 6510."),
        ("products", {"expression": "2 * 3 * 14"}, "84", "2 * 3 = 6. 6 * 14 = 60 + 24 = 84. The answer is 84."),
        ("simple_equations", {"variable": "u", "equation": "14 - u = 3"}, "11", "u = 14 - 3. The answer is 11."),
        ("simple_equations", {"variable": "u", "equation": "u - 14 = -3"}, "11", "u = -3 + 14. The answer is 11."),
        ("simple_equations", {"variable": "u", "equation": "u + 14 = 25"}, "11", "u = 25 - 14. The answer is 11."),
    ],
)
def test_the_taught_answer_leads_to_the_right_one(
    family: str, metadata: dict[str, str], answer: str, taught: str
) -> None:
    assert FAMILIES[family].taught({"metadata": metadata, "answer": answer}) == taught
    assert taught.endswith(f" {answer}.")


def test_no_answer_tells_by_itself_that_it_is_the_better_one() -> None:
    """Twins: what one prompt wants is rejected by another, so length and style are as frequent on both sides."""
    rows = preference.pairs("test", 100, 0)
    assert Counter(row["chosen"] for row in rows) == Counter(row["rejected"] for row in rows)
    assert len({row["prompt"] for row in rows}) > 50
    assert rows == preference.pairs("test", 100, 0)


def test_the_pairs_are_the_same_whatever_langdetect_has_drawn_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its guesses waver: a pair that it drops now and then would move all pairs behind it."""
    monkeypatch.setattr(DetectorFactory, "seed", None)
    preference.pairs("test", 100, 0)
    assert len({str(detect_langs("tea")) for _ in range(20)}) == 1


def test_the_verifiers_tell_the_better_answer_and_no_scored_thing_is_trained_on() -> None:
    trained = preference.pairs("train", 600, 1)
    for row in trained[:40]:
        keeps = preference.CONSTRAINTS[row["constraint"]].verifier(row["constraint"])
        assert keeps(row["chosen"])
        assert not keeps(row["rejected"])
    scored = {thing for split in ("validation", "test") for thing in preference.THINGS[preference.ABOUT[split]]}
    assert not [row for row in trained if any(f" {thing}" in row["prompt"] for thing in scored)]


def _archive(folder: Path, tasks: dict[str, Any]) -> Path:
    file = folder / "bigbench.tar.gz"
    with tarfile.open(file, "w:gz") as archive:
        for name, content in tasks.items():
            data = json.dumps(content).encode()
            member = tarfile.TarInfo(f"bigbench-1.0.0/bigbench/benchmark_tasks/{name}/task.json")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file


def test_what_is_taken_of_bigbench(tmp_path: Path) -> None:
    given = {
        "input": "Fact: a. \nQuestion: What shines? \nCorrect Answer: the sun.",
        "target": ["a stone.", "the sun."],
    }
    choice = {"input": "Pick one", "target_scores": {"no": 0, "yes": 1}}
    both = {"input": "Pick one", "target_scores": {"no": 1, "yes": 1}}
    talk = {"input": "Which fits? Context: A: When? B: <MASK>.", "target_scores": {"at nine": 1, "never": 0}}
    tasks: dict[str, Any] = {name: {"examples": [choice, both]} for name in bigbench.RETAINED}
    tasks |= {bigbench.QASC: {"examples": [given, given]}, bigbench.DIALOGUE: {"examples": [talk]}, "other": {}}
    found = bigbench.read_tasks(_archive(tmp_path, tasks))
    assert bigbench.answer_pairs(found[bigbench.QASC], 0) == [
        {"prompt": "What shines?", "chosen": "the sun.", "rejected": "a stone."}
    ]
    assert bigbench.dialogues(found[bigbench.DIALOGUE], 1, 0) == [{"text": "A: When? B: at nine."}]
    (row,) = bigbench.choice_rows(found["general_knowledge"], 9, 0)
    assert row["choices"][row["label"]] == "yes"
    del tasks["general_knowledge"]
    with pytest.raises(ValueError, match="without general_knowledge"):
        bigbench.read_tasks(_archive(tmp_path, tasks))
