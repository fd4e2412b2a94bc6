"""A study as it runs: what was asked before anything was scored stays known, and every seed is a run of its own."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from paft_plugin.cli import paft
from paft_plugin.demo.study import QUICK_STUDY, write_study
from paft_plugin.errors import Findings, PaftError
from paft_plugin.pipeline.estimate.disk import needed_bytes
from paft_plugin.pipeline.plan import HOLD_OUT
from paft_plugin.runner.identity import Identity
from paft_plugin.runner.lock import locked
from paft_plugin.runner.markers import marker_path, write_marker
from paft_plugin.study.config import read_configs
from paft_plugin.study.cost import expected
from paft_plugin.study.design import Design, Match
from paft_plugin.study.planning.plan import plan_study
from paft_plugin.study.run import _look_ahead, _open_all, freeze
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
    assert said.startswith(
        "The seeds and the contrasts (sparse or small, parallel with the penalty) were changed after scores"
    )
    assert len(freeze(design, tmp_path).changes) == 2  # back again is a change, too


def test_arms_that_come_or_go_after_scores_exist_are_said_for_good(study: Change, tmp_path: Path) -> None:
    design = plan_study(study(), read_configs(study())).design
    freeze(design.model_copy(update={"arms": design.arms[1:]}), tmp_path)
    score_something(tmp_path)
    (said,) = freeze(design, tmp_path).changes
    assert said.startswith(f"{design.arms[0].name} was added after scores existed (")
    assert " left out after" in freeze(design.model_copy(update={"arms": design.arms[2:]}), tmp_path).changes[1]


def test_settings_and_measures_that_change_after_scores_exist_are_said_for_good(study: Change, tmp_path: Path) -> None:
    design = plan_study(study(), read_configs(study())).design
    freeze(design, tmp_path)
    score_something(tmp_path)
    tried = next(arm for arm in design.arms if arm.settings)
    arms = [arm.model_copy(update={"settings": {"density": 0.123}}) if arm is tried else arm for arm in design.arms]
    said = freeze(design.model_copy(update={"arms": tuple(arms), "retained": ()}), tmp_path).changes
    assert [one.partition(" after scores")[0] for one in said] == [
        "The retained measures were changed",
        f"The settings of {tried.name} were changed",
    ]


def test_how_it_is_judged_is_frozen_as_well(study: Change, tmp_path: Path) -> None:
    file = study(controls=["early_stop"], contrasts=None)
    design = plan_study(file, read_configs(file)).design
    early = next(arm.name for arm in design.arms if arm.match)
    matched = {"match": Match(measure="style", to="dpo")}
    arms = [arm.model_copy(update=matched) if arm.name == early else arm for arm in design.arms]
    for place, (change, said) in enumerate(
        [
            ({"margins": {"": 0.5}}, "The margins were changed"),
            ({"arms": tuple(arms)}, f"The settings of {early} were changed"),
        ]
    ):
        folder = tmp_path / str(place)
        freeze(design, folder)
        (folder / "figures.json").write_text("{}", encoding="utf-8")  # of a study without its seeds' runs
        (found,) = freeze(design.model_copy(update=change), folder).changes
        assert found.startswith(f"{said} after scores existed (")


def test_a_study_of_before_margins_were_written_down_has_not_changed(study: Change, tmp_path: Path) -> None:
    design = plan_study(study(), read_configs(study())).design
    freeze(design.model_copy(update={"margins": None}), tmp_path)
    score_something(tmp_path)
    assert freeze(design, tmp_path).changes == ()


def test_two_studies_in_one_folder_do_not_meet(study: Change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paft_plugin.study.run.look_ahead", lambda _setup, _plan: Findings())
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out", 0):
        found = CliRunner().invoke(paft, ["study", str(study())])
    assert found.exit_code == 2
    assert "is at work in" in found.output
    assert not list((tmp_path / "out").glob("design.json"))


def test_a_readme_of_somebody_is_not_overwritten(study: Change, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("# Mine\n", encoding="utf-8")
    for arguments in (["--dry-run"], []):
        found = CliRunner().invoke(paft, ["study", str(study()), *arguments])
        assert found.exit_code == 2
        assert "README.md: was not written by a study" in found.output


def test_a_folder_with_another_study_s_scores_is_refused(study: Change, tmp_path: Path) -> None:
    design = plan_study(study(), read_configs(study())).design
    freeze(design, tmp_path)
    other = design.model_copy(update={"skill": "words"})
    assert freeze(other, tmp_path).changes == ()  # nothing was scored
    freeze(design, tmp_path)
    score_something(tmp_path)
    with pytest.raises(PaftError, match="has the scores of another study, of skill and style"):
        freeze(other, tmp_path)
    assert Design.read(tmp_path / "design.json").skill == "skill"


def test_a_dry_run_says_what_the_page_would_say_for_good(study: Change, tmp_path: Path) -> None:
    file = study(contrasts=None, controls=None, seeds=[1])
    design = plan_study(file, read_configs(file)).design
    freeze(design.model_copy(update={"seeds": (1, 2)}), tmp_path / "out")
    score_something(tmp_path / "out")
    said = " ".join(CliRunner().invoke(paft, ["study", str(file), "--dry-run"]).output.split())
    assert "its page will say: The seeds" in said
    assert "one seed says nothing of what another training would come to" in said
    assert "2: paft-ties, l1-ties-2" in said
    assert len(Design.read(tmp_path / "out" / "design.json").changes) == 0


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
def test_what_is_wrong_with_the_last_seed_is_said_before_the_first_one_trains(tmp_path: Path) -> None:
    file = write_study(replace(QUICK_STUDY, budget=1, curves={}), tmp_path)
    (tmp_path / "data" / "2" / "sft.jsonl").write_text('{"text": "no conversation"}\n' * 40, encoding="utf-8")
    found = CliRunner().invoke(paft, ["study", str(file)])
    assert found.exit_code == 2
    assert found.output.startswith(f"Error: seed 2: {tmp_path / 'axolotl' / 'sft.yml'}: datasets[0]")
    assert not list(tmp_path.glob("design.json")) + list(tmp_path.glob("seeds/*"))


def test_a_disk_that_has_no_room_for_all_seeds_is_said_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = plan_study(file := write_study(QUICK_STUDY, tmp_path), read_configs(file))
    runs = _open_all(study.runs)
    each = needed_bytes(runs[1][0])
    # What else a look finds is not asked here, and takes a minute.
    monkeypatch.setattr("paft_plugin.study.run.look_ahead", lambda _setup, _plan: Findings())
    monkeypatch.setattr("paft_plugin.study.run.free_bytes", lambda _: 2 * each - 1)
    assert [text for text in _look_ahead(runs).warnings if "All seeds together" in text]
    monkeypatch.setattr("paft_plugin.study.run.free_bytes", lambda _: 2 * each)
    assert not [text for text in _look_ahead(runs).warnings if "All seeds together" in text]


def test_what_is_to_run_takes_what_it_took_with_another_seed(study: Change) -> None:
    runs = _open_all(plan_study(file := study(seeds=[1, 2]), read_configs(file)).runs)
    setup, plan = runs[1]
    for name, seconds in (("sft", 600.0), ("dpo", 240.0)):
        write_marker(setup.run_dir, name, Identity({}), seconds)
    waiting = {1: ["dpo"], 2: [stage.name for stage in plan.stages]}
    assert expected(runs, waiting) == {1: (240.0, 0), 2: (840.0, len(plan.stages) - 2)}
    shown = " ".join(CliRunner().invoke(paft, ["study", str(file), "--dry-run"]).output.split())
    assert f"14:00 + {len(plan.stages) - 2} unknown" in shown


def test_a_base_that_is_named_by_its_hub_name_is_fetched_by_the_study_itself(
    study: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for arguments, said in ((["--dry-run"], "or start the run"), ([], "HF_HUB_OFFLINE is set")):
        found = CliRunner().invoke(paft, ["study", str(study(base="nobody/has-this")), *arguments])
        assert found.exit_code == 2
        assert said in " ".join(found.output.split())


@pytest.mark.slow
def test_the_demo_s_quick_study_from_end_to_end_though_it_is_killed(tmp_path: Path) -> None:
    # One seed: another one would double the minutes, and what is said of several is tested on runs that are written at once.
    file = write_study(replace(QUICK_STUDY, seeds=(1,), budget=1, curves={}), tmp_path)
    command = [sys.executable, "-u", "-m", "axolotl.cli.main", "paft", "study", str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert any(line.startswith("start ") and "train " in line for line in first.stdout)
        first.kill()
    done = marker_path(tmp_path / "seeds" / "1", HOLD_OUT)
    kept = done.read_bytes()
    found = CliRunner().invoke(paft, ["study", str(file)], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    assert done.read_bytes() == kept, "what was done is not done again"
    assert Design.read(tmp_path / "design.json").changes == ()
    assert (tmp_path / "study.html").is_file()
    assert "paft-ties" in found.output
    again = CliRunner().invoke(paft, ["study", str(file), "--dry-run"], catch_exceptions=False)
    assert [line.split()[1] for line in again.output.splitlines() if line.lstrip().startswith("1 ")] == ["0"]
