"""Order, fingerprints, markers and folders of stages: no process is started here."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest

from paft_plugin.errors import PaftError
from paft_plugin.runner import identity
from paft_plugin.runner.identity import identities
from paft_plugin.runner.markers import outdated, prepare_folder, read_marker, write_marker
from paft_plugin.runner.stages import Stage, in_order, marker_path


def stage(name: str, *needs: str, **others: object) -> Stage:
    plain = Stage(name, name.title(), ("true",), Path(name), needs)
    return dataclasses.replace(plain, **others)  # type: ignore[arg-type]


def names(stages: list[Stage]) -> list[str]:
    return [each.name for each in stages]


def finish(stages: list[Stage], run_dir: Path) -> None:
    now = identities(stages, run_dir)
    for each in stages:
        prepare_folder(each, run_dir, now[each.name].fingerprint)
        write_marker(run_dir, each.name, now[each.name], 1.5)


def fingerprints(stages: list[Stage], run_dir: Path) -> dict[str, str]:
    return {name: identity.fingerprint for name, identity in identities(stages, run_dir).items()}


def reasons(stages: list[Stage], run_dir: Path) -> dict[str, str]:
    return outdated(stages, run_dir, identities(stages, run_dir))


def test_order_follows_needs_and_else_the_order_given(tmp_path: Path) -> None:
    given = [stage("report", "merge"), stage("sft"), stage("merge", "sft", "dpo"), stage("dpo")]
    assert names(in_order(given, tmp_path)) == ["sft", "dpo", "merge", "report"]


def test_a_circle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PaftError, match=r"circle.*: a, b\."):
        in_order([stage("a", "b"), stage("b", "a"), stage("c")], tmp_path)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(PaftError) as caught:
        in_order([stage("a", "z"), stage("A", folder=Path("x")), stage("../b", folder=Path("b"), command=())], tmp_path)
    assert len(caught.value.problems) == 4
    text = str(caught.value)
    assert "'a' needs 'z'" in text
    assert "'A' is used twice" in text
    assert "'../b' cannot name a file" in text
    assert "'../b' has no command" in text


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("/elsewhere", "not inside the run directory"),
        ("../beside", "not inside the run directory"),
        ("a/../../beside", "not inside the run directory"),
        (".", "not inside the run directory"),
        ("link/x", "symbolic link"),
        ("link", "symbolic link"),
        ("inner", "symbolic link"),
        ("file", "not a folder"),
        ("logs", "overlaps"),
        (".stages/x", "overlaps"),
        ("other/deeper", "belongs to stage 'other'"),
    ],
)
def test_folders_that_must_not_be_emptied_are_refused_and_kept(tmp_path: Path, folder: str, reason: str) -> None:
    run_dir, outside = tmp_path / "run", tmp_path / "beside"
    for path in (run_dir / "other", outside):
        path.mkdir(parents=True)
        (path / "precious").write_text("keep me")
    (run_dir / "link").symlink_to(outside)
    (run_dir / "inner").symlink_to(run_dir / "other")
    (run_dir / "file").write_text("keep me")
    bad = stage("bad", folder=Path(folder))
    with pytest.raises(PaftError, match=reason):
        in_order([stage("other"), bad], run_dir)
    if "overlaps" not in reason and "belongs" not in reason:  # a second check, right where things are deleted
        with pytest.raises(PaftError, match="nothing was deleted"):
            prepare_folder(bad, run_dir, "0")
    assert (outside / "precious").read_text() == (run_dir / "other" / "precious").read_text() == "keep me"


def test_an_input_that_a_stage_rewrites_is_refused(tmp_path: Path) -> None:
    for path in ("sft/config.yml", "logs/x.log", "."):
        with pytest.raises(PaftError, match=r"input .* overlaps"):
            in_order([stage("sft"), stage("merge", inputs=(Path(path),))], tmp_path)


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


def test_a_missing_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(PaftError, match=r"Stage 'sft': input .*gone\.yml does not exist"):
        fingerprints([stage("sft", inputs=(Path("gone.yml"),))], tmp_path)


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


def test_an_interrupted_stage_says_whether_it_goes_on(tmp_path: Path) -> None:
    stages = [stage("fresh"), stage("resuming", resumes=True)]
    now = identities(stages, tmp_path)
    for each in stages:
        prepare_folder(each, tmp_path, now[each.name].fingerprint)
    assert reasons(stages, tmp_path) == {"fresh": "interrupted: starts again", "resuming": "interrupted: goes on"}
    changed = [dataclasses.replace(stages[1], command=("x",))]
    assert reasons(changed, tmp_path) == {"resuming": "interrupted, and changed since: starts again"}


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


def test_emptying_a_folder_follows_no_link(tmp_path: Path) -> None:
    run_dir, outside = tmp_path / "run", tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("keep me")
    (run_dir / "sft").mkdir(parents=True)
    (run_dir / "sft" / "link").symlink_to(outside)
    prepare_folder(stage("sft"), run_dir, "0")
    assert list((run_dir / "sft").iterdir()) == []
    assert (outside / "precious").read_text() == "keep me"
