"""Markers: what must run and why, and with what in its folder."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from paft_plugin.errors import PaftError
from paft_plugin.runner.identity import identities
from paft_plugin.runner.markers import prepare_folder, read_marker
from paft_plugin.runner.stages import Stage, in_order, marker_path
from tests.runner.plain_stages import fingerprints, finish, reasons, stage


def test_a_moved_run_is_still_up_to_date(tmp_path: Path) -> None:
    def stages(run_dir: Path) -> list[Stage]:
        command = ("tool", f"--output={run_dir}/sft", str(run_dir))
        return [stage("sft", command=command, folder=run_dir / "sft", inputs=(run_dir / "sft.yml",))]

    here, there = tmp_path / "here + now", tmp_path / "there"
    here.mkdir()
    (here / "sft.yml").write_text(f"output_dir: {here}/sft\nother: {here}2\n")
    finish(stages(here), here)
    shutil.move(here, there)
    (there / "sft.yml").write_text(f"output_dir: {there}/sft\nother: {here}2\n")
    assert reasons(stages(there), there) == {}
    (there / "sft.yml").write_text(f"output_dir: {there}/sft\nother: {there}2\n")
    assert reasons(stages(there), there) == {"sft": "changed: sft.yml"}


def test_what_must_run_and_why(tmp_path: Path) -> None:
    data, config = tmp_path / "rows + more.jsonl", tmp_path / "c.yml"
    data.write_text("1")
    config.write_text("1")
    stages = [stage("a", inputs=(data, Path("c.yml"))), stage("b", "a"), stage("c"), stage("d", "b", "c")]
    assert reasons(stages, tmp_path) == dict.fromkeys("abcd", "not run yet")
    finish(stages, tmp_path)
    assert reasons(stages, tmp_path) == {}
    assert reasons([*stages[:2], dataclasses.replace(stages[2], command=("x",)), stages[3]], tmp_path) == {
        "c": "changed: its command",
        "d": "after c",
    }
    (tmp_path / "a").rmdir()
    assert reasons(stages, tmp_path) == {"a": "its folder a is gone", "b": "after a", "d": "after b"}
    (tmp_path / "a").mkdir()
    config.write_text("2")
    data.write_text("2")
    assert reasons(stages, tmp_path)["a"] == "changed: rows + more.jsonl, c.yml"
    finish(stages[:1], tmp_path)
    # A run that was cut off between a and b: a is up to date, b was made from what a had been.
    assert reasons(stages, tmp_path) == {"b": "after a", "d": "after b"}


def test_a_stage_may_have_several_folders_all_of_its_own(tmp_path: Path) -> None:
    both = stage("a", more_folders=(Path("b"),))
    with pytest.raises(PaftError, match=r"Stage 'b': output folder .*/b overlaps .*, which belongs to stage 'a'"):
        in_order([both, stage("b")], tmp_path)
    finish([both], tmp_path)
    assert reasons([both], tmp_path) == {}
    (tmp_path / "b").rmdir()
    assert reasons([both], tmp_path) == {"a": "its folder b is gone"}
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "old").touch()
    prepare_folder(both, tmp_path, "new")
    assert not list((tmp_path / "b").iterdir())


def test_an_interrupted_stage_says_whether_it_goes_on(tmp_path: Path) -> None:
    stages = [stage("fresh"), stage("resuming", resumes=True)]
    now = identities(stages, tmp_path)
    for each in stages:
        prepare_folder(each, tmp_path, now[each.name].fingerprint)
    assert reasons(stages, tmp_path) == {"fresh": "interrupted: starts again", "resuming": "interrupted: goes on"}
    changed = [dataclasses.replace(stages[1], command=("x",))]
    assert reasons(changed, tmp_path) == {"resuming": "interrupted, and changed since: starts again"}
    keeping = [dataclasses.replace(changed[0], resumes=False, keeps=True)]
    assert reasons(keeping, tmp_path) == {"resuming": "interrupted, and changed since: keeps what fits"}


def test_the_version_of_a_program_is_named(tmp_path: Path) -> None:
    finish([stage("a", versions={"tool": "1.0"})], tmp_path)
    assert reasons([stage("a", versions={"tool": "1.0"})], tmp_path) == {}
    assert reasons([stage("a", versions={"tool": "1.1"})], tmp_path) == {"a": "changed: the version of tool"}


def test_a_marker_of_another_version_is_no_marker_and_said_to_be_one(tmp_path: Path) -> None:
    """As the last version of this package wrote it."""
    stages = [stage("a"), stage("b", "a")]
    now = identities(stages, tmp_path)
    finish(stages, tmp_path)
    marker = marker_path(tmp_path, "a")
    parts = dict(now["a"].parts) | {"paft-plugin": "0.1.0"}
    old = {"schema": 2, "name": "a", "fingerprint": "0" * 16, "seconds": 1.5, "finished_at": "2026", "parts": parts}
    for schema, said in ((2, "finished by an earlier version"), (99, "finished by a later version")):
        marker.write_text(json.dumps(old | {"schema": schema}))
        assert read_marker(tmp_path, "a") is None
        assert reasons(stages, tmp_path) == {"a": said, "b": "after a"}


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"schema": 3, "name": "a"}', '{"schema": "3"}', "\udcff", "another stage's"]
)
def test_a_damaged_marker_is_no_marker_and_said_to_be_one(tmp_path: Path, content: str) -> None:
    finish([stage("a"), stage("b")], tmp_path)
    written = read_marker(tmp_path, "a")
    assert written is not None
    assert written.seconds == 1.5
    assert written.fingerprint == fingerprints([stage("a")], tmp_path)["a"]
    content = content if content != "another stage's" else marker_path(tmp_path, "b").read_text()
    marker_path(tmp_path, "a").write_text(content, errors="surrogateescape")
    assert read_marker(tmp_path, "a") is None
    assert reasons([stage("a")], tmp_path) == {"a": "its marker is damaged"}


def test_a_stage_starts_empty_unless_it_resumes_the_same_attempt(tmp_path: Path) -> None:
    fresh, resuming = stage("fresh"), stage("resuming", resumes=True)
    for each in (fresh, resuming):
        assert not prepare_folder(each, tmp_path, "first")
        (tmp_path / each.name / "checkpoint").write_text("half-way")
    assert not prepare_folder(fresh, tmp_path, "first")
    assert list((tmp_path / "fresh").iterdir()) == []
    assert prepare_folder(resuming, tmp_path, "first")
    assert (tmp_path / "resuming" / "checkpoint").exists()
    assert not prepare_folder(resuming, tmp_path, "second"), "a checkpoint of another config must not be resumed"
    assert list((tmp_path / "resuming").iterdir()) == []


def test_a_stage_that_keeps_is_never_emptied(tmp_path: Path) -> None:
    keeping = stage("keeping", keeps=True)
    for attempt in ("first", "first", "second"):
        prepare_folder(keeping, tmp_path, attempt)
        (tmp_path / "keeping" / f"{attempt}.json").write_text("scores")
    assert len(list((tmp_path / "keeping").iterdir())) == 2


def test_emptying_a_folder_follows_no_link(tmp_path: Path) -> None:
    run_dir, outside = tmp_path / "run", tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("keep me")
    (run_dir / "sft").mkdir(parents=True)
    (run_dir / "sft" / "link").symlink_to(outside)
    prepare_folder(stage("sft"), run_dir, "0")
    assert list((run_dir / "sft").iterdir()) == []
    assert (outside / "precious").read_text() == "keep me"
