"""The small files of a study: they hold what the runs scored, are small, and nothing strange in them gets through."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paft_plugin.errors import PaftError
from paft_plugin.files import write_bytes
from paft_plugin.study.design import DESIGN_FILE, SEEDS, Design
from paft_plugin.study.scores import FIGURES_FILE, ITEMS, MeasureItems, collect, items_in, packed, read_study
from tests.study.studies import COUNTS, LEVELS, design, drawn_items, write_runs, write_small

FEW = {"skill": 24, "preference": 13, "retained": 9}


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    levels = {name: LEVELS[name] for name in ("base", "sft", "sft-l1", "dpo", "ties", "sequential")}
    folder = write_runs(tmp_path_factory.mktemp("study"), design((1, 2, 3)), levels, counts=FEW)
    for file in (folder / SEEDS / "3").glob("results.json"):
        file.unlink()
    collect(folder, Design.read(folder / DESIGN_FILE))
    return folder


def test_they_hold_what_the_runs_scored(collected: Path) -> None:
    scores = read_study(collected)
    for seed in (1, 2):
        drawn = drawn_items(seed, counts=FEW)
        for measure, kept in scores.items[seed].items():
            assert set(kept.arms) == {"base", "sft", "sft-l1", "dpo", "ties", "sequential"}
            for arm, values in kept.arms.items():
                np.testing.assert_allclose(values, drawn[measure].arms[arm], rtol=0, atol=scores.rounding[measure])
    assert scores.rounding["skill"] == 0 < scores.rounding["retained"] < 0.001


def test_what_is_missing_is_said(collected: Path) -> None:
    notes = read_study(collected).figures.notes
    assert "Seed 3 has no results, and is left out." in notes
    assert "joint was not scored with seeds 1, 2." in notes


def test_a_seed_that_failed_is_left_out_though_results_of_before_are_there(tmp_path: Path) -> None:
    levels = {name: LEVELS[name] for name in ("base", "sft", "sft-l1", "dpo")}
    folder = write_runs(tmp_path, design((1, 2, 3)), levels, counts=FEW)
    for failed in ([], [2]):  # after a time when it had not failed
        collect(folder, Design.read(folder / DESIGN_FILE), (), failed)
    found = read_study(folder)
    assert list(found.items) == [1, 3]
    assert "Seed 2 failed, and is left out." in found.figures.notes


def test_a_measure_that_tells_nothing_is_said(tmp_path: Path) -> None:
    levels = dict.fromkeys(("base", "sft", "dpo", "ties"), (0.0, 0.5, 1.0))
    folder = write_runs(tmp_path, design((1, 2)), levels, counts={**FEW, "retained": 4}, spread=0.0)
    collect(folder, design((1, 2)))
    notes = read_study(folder).figures.notes
    assert "skill tells nothing, because all 4 arms come to 0.000, and primary counts it." in notes
    assert [note for note in notes if note.startswith("retained tells nothing, because it has 4 items")]
    assert not [note for note in notes if note.startswith("preference tells")]


def test_items_of_a_large_study_can_be_committed() -> None:
    levels = {f"arm-{place}": (0.3 + 0.005 * place, 0.5, 1.0 + 0.01 * place) for place in range(110)}
    size = len(packed(drawn_items(1, levels, {"skill": 2000, "preference": 500, "retained": 200})))
    assert 5 * size < 2 << 20


def test_the_same_items_are_the_same_bytes() -> None:
    assert packed(drawn_items(1, counts=FEW)) == packed(drawn_items(1, counts=FEW))


def archive(**changes: Any) -> bytes:
    """A file of one measure, with other arrays or another header."""
    header = {
        "schema": 1,
        "measures": [
            {
                "measure": "skill",
                "items": "0" * 16,
                "count": 9,
                "arms": ["base", "sft"],
                "step": None,
                "has_sources": False,
            }
        ],
    }
    header["measures"][0].update(changes.pop("said", {}))  # type: ignore[index]
    arrays = {"values_0": np.zeros((2, 2), np.uint8), **changes}
    buffer = io.BytesIO()
    text = np.frombuffer(json.dumps({**header, **arrays.pop("head", {})}).encode(), np.uint8)
    np.savez_compressed(buffer, header=text, **arrays)
    return buffer.getvalue()


def bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("header.npy", b"\0" * (1 << 28))
    return buffer.getvalue()


def encrypted() -> bytes:
    """Its members say that they are, in both places of the archive."""
    content = bytearray(archive())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = content.find(mark)
        while start >= 0:
            content[start + place] |= 1
            start = content.find(mark, start + 1)
    return bytes(content)


def claiming(shape: tuple[int, ...], said: str = "") -> bytes:
    """An array that says that it is larger than its bytes, or what is no header at all."""
    buffer, member = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": shape})
    if said:
        member = io.BytesIO(b"\x93NUMPY\x01\x00" + len(said).to_bytes(2, "little") + said.encode())
    with zipfile.ZipFile(buffer, "w") as opened:
        opened.writestr("header.npy", member.getvalue())
    return buffer.getvalue()


STRANGE = {
    "no archive": b"PK no",
    "nothing": b"",
    "a bomb": bomb(),
    "larger than its bytes": claiming((1 << 40,)),
    "objects": archive(values_0=np.array([[{}, 1], [2, 3]], dtype=object)),
    "floats": archive(values_0=np.zeros((2, 2))),
    "another shape": archive(values_0=np.zeros((3, 2), np.uint8)),
    "one more array": archive(values_1=np.zeros((2, 2), np.uint8)),
    "no array": archive(said={"arms": ["base"], "count": 9}),
    "an arm twice": archive(said={"arms": ["sft", "sft"]}),
    "bits with a step": archive(said={"step": 0.5, "count": 2}),
    "no step": archive(values_0=np.zeros((2, 9), np.int16)),
    "a step of nothing": archive(values_0=np.zeros((2, 9), np.int16), said={"step": 0.0}),
    "an endless step": archive(values_0=np.zeros((2, 9), np.int16), said={"step": 1e999}),
    "no items": archive(said={"count": 0}),
    "too many items": archive(said={"count": 1 << 60}),
    "no sources": archive(said={"has_sources": True}),
    "another schema": archive(head={"schema": 3}),
    "no fingerprint": archive(said={"items": "x"}),
    "names of others": archive(said={"has_names": True}, names_0=np.zeros(8, np.uint32)),
    "encrypted": encrypted(),
    "a header that ends within": claiming((), "{'descr': ("),
    "more than memory": archive(said={"arms": [f"arm-{place}" for place in range(1 << 14)], "count": 1 << 20}),
    "no measures": archive(head={"measures": 3}),
    "truncated": archive()[:-40],
}


@pytest.mark.parametrize("what", STRANGE)
def test_a_strange_file_is_one_message(what: str) -> None:
    with pytest.raises(PaftError, match=r"1\.npz: (damaged|schema|no valid)") as error:
        items_in(STRANGE[what], Path("1.npz"))
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("value", [0.1, 1e9, -3.3])
def test_items_that_are_all_alike_come_back(value: float) -> None:
    kept = MeasureItems("0" * 16, {"base": np.full(7, value), "sft": np.full(7, value)})
    found, steps = items_in(packed({"retained": kept}), Path("1.npz"))
    np.testing.assert_allclose(found["retained"].arms["sft"], value, atol=steps["retained"], rtol=0)
    assert steps["retained"] < 1e-8 * abs(value)


def test_items_are_the_same_by_their_names_in_every_seed_and_measure(tmp_path: Path) -> None:
    folder = write_runs(tmp_path, design((1, 2)), {name: LEVELS[name] for name in ("base", "sft")}, counts=FEW)
    collect(folder, Design.read(folder / DESIGN_FILE))
    scores = read_study(folder)
    assert scores.are_named
    assert scores.units(1, "skill").tolist() == scores.units(2, "skill").tolist()
    assert not set(scores.units(1, "skill").tolist()) & set(scores.units(1, "preference").tolist())


def test_a_good_one_is_read() -> None:
    found, _ = items_in(archive(), Path("1.npz"))
    assert found["skill"].arms["sft"].tolist() == [0.0] * 9


def test_files_that_contradict_each_other_are_told_of_together(tmp_path: Path) -> None:
    folder = write_small(tmp_path, counts=FEW)
    write_bytes(folder / ITEMS / "2.npz", archive(said={"arms": ["base", "unheard"]}))
    (folder / ITEMS / "3.npz").unlink()
    with pytest.raises(PaftError) as error:
        read_study(folder)
    assert "unheard is no arm" in str(error.value)
    assert "3.npz: no such file" in str(error.value)


def test_items_of_another_time_are_not_taken_for_these(tmp_path: Path) -> None:
    """A study that was stopped while it wrote, or files of two that were put together."""
    folder = write_small(tmp_path, counts=FEW)
    write_bytes(folder / ITEMS / "2.npz", packed(drawn_items(4, counts=FEW)))
    with pytest.raises(PaftError, match=r"2\.npz: is of another time than figures\.json"):
        read_study(folder)


def test_a_study_without_results_says_so(tmp_path: Path) -> None:
    design().write(tmp_path / DESIGN_FILE)
    with pytest.raises(PaftError, match="no seed has results yet"):
        collect(tmp_path, design())
    assert not (tmp_path / FIGURES_FILE).exists()
    assert COUNTS["skill"] > FEW["skill"]
