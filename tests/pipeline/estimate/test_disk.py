"""The estimate of the disk that a run takes moves with what makes it grow."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from paft_plugin.pipeline.estimate.disk import check_disk, needed_bytes
from paft_plugin.pipeline.preflight.check import check_base
from tests.pipeline.room import Room


def test_grows_with_what_is_kept(room: Room, demo: Path) -> None:
    model = (demo / "base" / "model.safetensors").stat().st_size
    nothing = {"save_strategy": "no", "save_steps": None}
    without = needed_bytes(room.setup(sft=nothing, preference=nothing))
    few = needed_bytes(room.setup(sft={"save_steps": 5, "save_total_limit": 2}, preference=nothing))
    many = needed_bytes(room.setup(sft={"save_steps": 5, "save_total_limit": 8}, preference=nothing))
    assert without < few < many
    whole = needed_bytes(room.setup(sft={**nothing, "adapter": None}, preference=nothing))
    assert whole > without + model / 2
    assert needed_bytes(room.setup(sft=nothing, preference=nothing, sequential=True)) > without + model


def test_fused_models_are_counted(room: Room, demo: Path) -> None:
    one, two = (needed_bytes(room.setup(fusion={"methods": methods})) for methods in (["ties"], ["ties", "della"]))
    assert two - one == pytest.approx((demo / "base" / "model.safetensors").stat().st_size, rel=0.05)


def test_what_is_fused_in_memory_takes_no_disk(room: Room) -> None:
    evaluation = {"held_out": {"sft": 20, "preference": 20}}
    many = {f"ties-{number}": {"branches": ["sft-l1", "dpo"], "method": "ties"} for number in range(9)}
    without = needed_bytes(room.setup(evaluation=evaluation))
    assert needed_bytes(room.setup(evaluation=evaluation, fusion={"fused": many})) == without


@pytest.mark.parametrize(
    "setting", [{"lora_r": "16,"}, {"save_total_limit": "two"}, {"lora_modules_to_save": True}], ids=str
)
def test_a_setting_of_a_wrong_kind_is_axolotl_s_to_name(room: Room, setting: dict[str, object]) -> None:
    assert needed_bytes(room.setup(sft={"lora_target_linear": True, **setting})) > 0


def test_a_folder_that_cannot_be_written_to(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    assert "cannot be written to" in check_disk(room.setup()).problems[0]


def test_broken_weights_are_named(room: Room, demo: Path, tmp_path: Path) -> None:
    base = shutil.copytree(demo / "base", tmp_path / "base")
    (base / "model.safetensors").write_bytes(b"\x08")
    assert "model.safetensors: truncated or corrupt" in check_base(room.setup(base=str(base))).problems[0]
