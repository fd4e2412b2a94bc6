"""Order and folders of stages: no process is started here."""

from __future__ import annotations

from pathlib import Path

import pytest

from paft_plugin.errors import PaftError
from paft_plugin.runner.markers import prepare_folder
from paft_plugin.runner.stages import Stage, in_order
from tests.runner.plain_stages import stage


def names(stages: list[Stage]) -> list[str]:
    return [each.name for each in stages]


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
