"""What a stage's result depends on, told by its fingerprint."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from datasets import Dataset, load_from_disk

from paft_plugin.errors import PaftError
from paft_plugin.runner import identity
from paft_plugin.runner.stages import Stage
from tests.runner.plain_stages import fingerprints, stage


def test_fingerprints_tell_what_matters(tmp_path: Path) -> None:
    config, data = tmp_path / "a.yml", tmp_path / "data"
    config.write_text("lr: 1")
    data.mkdir()
    (data / "rows.jsonl").write_text("{}")
    base = [stage("sft", inputs=(config, data)), stage("merge", "sft"), stage("dpo")]

    def prints(stages: list[Stage]) -> list[str]:
        found = fingerprints(stages, tmp_path)
        return [found["sft"], found["merge"], found["dpo"]]

    before = prints(base)
    assert prints(base) == before
    assert len(set(before)) == 3

    def changed(first: Stage) -> None:
        after = prints([first, *base[1:]])
        assert after[0] != before[0]
        assert after[1] != before[1], "what depends on a changed stage is changed, too"
        assert after[2] == before[2], "what does not, is not"

    changed(dataclasses.replace(base[0], command=("true", "--x")))
    changed(dataclasses.replace(base[0], environment={"SEED": "1"}))
    changed(dataclasses.replace(base[0], inputs=(config,)))
    changed(dataclasses.replace(base[0], folder=Path("other")))
    (data / "more.jsonl").write_text("")
    changed(base[0])
    (data / "more.jsonl").unlink()
    (data / "__pycache__").mkdir()
    (data / "__pycache__" / "code.pyc").write_text("whoever reads it first writes it")
    assert prints(base) == before
    config.write_text("lr: 2")
    changed(base[0])
    assert prints([dataclasses.replace(base[0], title="Another title"), *base[1:]]) == prints(base)


def test_a_large_input_is_told_by_its_content(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.write_bytes(bytes(3 << 20))
    one = stage("one", inputs=(weights,))
    before = fingerprints([one], tmp_path)
    with weights.open("r+b") as file:
        file.seek(2 << 20)
        file.write(b"x")
    assert fingerprints([one], tmp_path) != before


def test_a_large_input_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "weights"
    weights.write_bytes(bytes(3 << 20))
    monkeypatch.setattr(identity, "_SETTLED", 0.0)
    before = fingerprints([stage("one", inputs=(weights,))], tmp_path)
    monkeypatch.setattr(identity, "file_digest", lambda path: f"read again: {path}")
    assert fingerprints([stage("one", inputs=(weights,))], tmp_path) == before
    os.utime(weights, (0, 0))  # as a copy of other weights would look that keeps the first ones' size
    assert fingerprints([stage("one", inputs=(weights,))], tmp_path) != before


def test_what_datasets_computes_of_a_data_set_that_it_saved_is_none_of_it(tmp_path: Path) -> None:
    saved = tmp_path / "rows"
    Dataset.from_list([{"text": "a"}]).save_to_disk(str(saved))
    one = stage("one", inputs=(saved,))
    before = fingerprints([one], tmp_path)
    load_from_disk(str(saved)).map(lambda row: {"more": row["text"]})
    assert list(saved.glob("cache-*.arrow"))
    assert fingerprints([one], tmp_path) == before


def test_a_missing_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(PaftError, match=r"Stage 'sft': input .*gone\.yml does not exist"):
        fingerprints([stage("sft", inputs=(Path("gone.yml"),))], tmp_path)
