"""A study as it runs: what was asked before anything was scored stays known, and every seed is a run of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from paft_plugin.cli import paft
from paft_plugin.demo.study import QUICK_STUDY, write_study
from paft_plugin.study.config import read_configs
from paft_plugin.study.design import Design
from paft_plugin.study.plan import plan_study
from paft_plugin.study.run import freeze
from tests.study.room import Change


def score_something(folder: Path) -> None:
    file = folder / "seeds" / "1" / "scores" / "base" / "scores.json"
    file.parent.mkdir(parents=True)
    file.write_text("{}", encoding="utf-8")


def test_what_changes_before_anything_is_scored_is_no_change(study: Change, tmp_path: Path) -> None:
    design = plan_study(study(), read_configs(study())).design
    freeze(design, tmp_path)
    assert freeze(design.model_copy(update={"seeds": (1, 2, 3)}), tmp_path).changes == ()
    assert Design.read(tmp_path / "design.json").seeds == (1, 2, 3)


def test_what_changes_after_scores_exist_is_said_for_good(study: Change, tmp_path: Path) -> None:
    design = plan_study(study(), read_configs(study())).design
    freeze(design, tmp_path)
    score_something(tmp_path)
    assert freeze(design, tmp_path).changes == ()
    other = design.model_copy(update={"contrasts": design.contrasts[:1], "seeds": (1,)})
    (said,) = freeze(other, tmp_path).changes
    assert said.startswith("The seeds and the contrasts were changed after scores existed (")
    assert len(freeze(design, tmp_path).changes) == 2  # back again is a change, too


def test_scores_without_a_design_from_before_are_said(study: Change, tmp_path: Path) -> None:
    score_something(tmp_path)
    (said,) = freeze(plan_study(study(), read_configs(study())).design, tmp_path).changes
    assert said.startswith("There was no design.json when the first arm was scored")


def test_the_command_takes_a_study_or_a_folder(tmp_path: Path) -> None:
    for arguments in ([], ["study.yml", "--recompute", str(tmp_path)]):
        found = CliRunner().invoke(paft, ["study", *arguments])
        assert found.exit_code == 2
        assert "Give STUDY.YML, or --recompute DIR." in found.output


@pytest.mark.slow
def test_the_demo_s_quick_study_from_end_to_end(tmp_path: Path) -> None:
    # One seed: another one would double the minutes, and what is said of several is tested on runs that are written at once.
    file = write_study(replace(QUICK_STUDY, seeds=(1,), budget=1, curves={}), tmp_path)
    found = CliRunner().invoke(paft, ["study", str(file)], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    assert Design.read(tmp_path / "design.json").changes == ()
    assert (tmp_path / "study.html").is_file()
    assert "paft-ties" in found.output
    again = CliRunner().invoke(paft, ["study", str(file), "--dry-run"], catch_exceptions=False)
    assert [line.split()[2] for line in again.output.splitlines() if line.lstrip().startswith("1 ")] == ["0"]
