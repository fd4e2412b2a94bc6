"""What a study leaves for people: the same small files give the same bytes, in every format, for any names."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from paft_plugin.drawing import Missing
from paft_plugin.errors import PaftError
from paft_plugin.study.analysis import Analysis, analyse
from paft_plugin.study.design import DESIGN_FILE, SEEDS, Design, StudyArm
from paft_plugin.study.effects import mean_score
from paft_plugin.study.page import PAGE, README, SECTIONS, content, html, markdown, words, write_study
from paft_plugin.study.plots import study_plots
from paft_plugin.study.scores import FIGURES_FILE, ITEMS, collect, read_study
from paft_plugin.study.tables import STUDY_FILE, branch_table, study_tables
from paft_plugin.tables import Cell, Column, Row, Table, as_latex, as_markdown
from tests.study.studies import CONTRASTS, LEVELS, arms, design, write_runs, write_small

FEW = {"skill": 60, "preference": 40, "retained": 20}


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    return analyse(read_study(write_small(tmp_path_factory.mktemp("study"), counts=FEW)))


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.mark.slow
def test_everything_is_made_anew_from_the_small_files_byte_for_byte(tmp_path: Path) -> None:
    few = {name: LEVELS[name] for name in ("base", "sft", "sft-l1", "dpo", "sequential", "ties", "ties-l1", "dropped")}
    study = write_runs(
        tmp_path / "study",
        design((1, 2), arms=[arm for arm in arms() if arm.name in few], contrasts=CONTRASTS[1:2]),
        few,
        counts=FEW,
    )
    collect(study, Design.read(study / DESIGN_FILE), [{"way": "ties", "seconds": 3.5}])
    write_study(study)
    shutil.rmtree(study / SEEDS)
    left = bytes_of(study)
    again = tmp_path / "again" / "study"
    again.mkdir(parents=True)
    for name in (DESIGN_FILE, FIGURES_FILE):
        shutil.copy(study / name, again / name)
    shutil.copytree(study / ITEMS, again / ITEMS)
    write_study(again)
    assert bytes_of(again) == left
    assert {str(PAGE), str(README), STUDY_FILE, "figures/scores.png", "tables/contrasts.tex"} <= left.keys()


def test_a_damaged_file_leaves_what_is_there(tmp_path: Path) -> None:
    study = write_small(tmp_path, counts=FEW)
    (study / PAGE).write_text("as it was")
    (study / ITEMS / "2.npz").write_bytes(b"PK")
    with pytest.raises(PaftError, match=r"2\.npz: damaged"):
        write_study(study)
    assert (study / PAGE).read_text() == "as it was"


def test_what_an_earlier_analysis_drew_goes_and_what_others_put_there_stays(tmp_path: Path) -> None:
    study = write_small(tmp_path, counts=FEW)
    write_study(study)
    assert (study / "figures" / "differences.png").is_file()
    others = [study / "figures" / "mine.png", study / "tables" / "mine.tex"]
    for file in others:
        file.write_text("mine")
    Design.read(study / DESIGN_FILE).model_copy(update={"contrasts": ()}).write(study / DESIGN_FILE)
    write_study(study)
    assert not (study / "figures" / "differences.png").exists()
    assert not (study / "tables" / "contrasts.tex").exists()
    assert all(file.read_text() == "mine" for file in others)


def test_what_the_user_says_of_it_is_on_the_page_and_in_markdown(tmp_path: Path) -> None:
    write_study(write_small(tmp_path, design(description="What I **ask**."), counts=FEW))
    assert "\nWhat I **ask**.\n" in (tmp_path / README).read_text(encoding="utf-8")
    assert "What I <strong>ask</strong>." in (tmp_path / PAGE).read_text(encoding="utf-8")


def test_where_every_way_has_one_trial_there_is_no_front_to_draw(tmp_path: Path) -> None:
    alone = [arm for arm in arms() if (arm.trial or 1) == 1]
    levels = {arm.name: LEVELS[arm.name] for arm in alone}
    study = write_small(tmp_path, design(arms=alone, contrasts=CONTRASTS[1:2]), levels, counts=FEW)
    plots = study_plots(analyse(read_study(study)), "fronts")
    assert all(isinstance(plot, Missing) for plot in plots)


def test_what_is_as_good_as_the_best_is_named_beside_it(tmp_path: Path) -> None:
    levels = {**LEVELS, "dpo": (0.9, 0.9, 1.0)}
    facts = words(analyse(read_study(write_small(tmp_path, levels=levels, counts=FEW)))).facts
    assert any(
        re.match(r"Next on validation items: [\w-]+, 0\.\d{3} against 0\.\d{3}; 0\.\d{3} on test items\.", fact)
        for fact in facts
    )
    assert any(fact.startswith("No way of combining is better there than dpo alone: 0.") for fact in facts)
    assert not any("alone" in fact for fact in words(analyse(read_study(write_small(tmp_path, counts=FEW)))).facts)


def test_a_name_cannot_break_a_table() -> None:
    table = Table([Column("Name", False)], [Row([Cell("[H]\n\n# head | it")])], "t", "Caption")
    assert as_markdown(table).splitlines()[2] == "| [H] # head \\| it |"
    assert "\n{}[H] \\# head" in as_latex(table)


def test_no_table_loses_an_interval_in_a_terminal(analysis: Analysis) -> None:
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    tables = {table.name: table for table in study_tables(analysis)}
    for table in tables.values():
        console.print(table)
    said = console.export_text()
    level = analysis.rows[0].levels["skill"]
    assert f"{level.value:.3f} ± {level.reach:.3f}" in said
    assert max(map(len, said.splitlines())) <= 80


def test_every_number_of_the_main_table_stands_in_the_json(analysis: Analysis) -> None:
    arms_of = {row["name"]: row for row in json.loads(json.dumps(content(analysis), allow_nan=False))["arms"]}
    for row in analysis.main:
        for measure, level in row.levels.items():
            found = arms_of[row.name]["levels"][measure]
            assert found["value"] == level.value
            assert tuple(found["interval"]) == level.interval
            assert {int(seed): mean for seed, mean in found["seeds"].items()} == level.seeds


def test_branches_with_other_settings_are_told_apart_by_validation_items(analysis: Analysis) -> None:
    assert branch_table(analysis) is None
    further = tuple(StudyArm(name=name, group="branch") for name in ("lambda-1", "lambda-9"))
    more = replace(analysis.scores, design=design(arms=(*further, *arms())))
    table = branch_table(analyse(more))
    assert table is not None
    skill = [column.heading for column in table.columns].index("skill")
    shown = {row.cells[0].text: row.cells[skill].order for row in table.rows}
    assert shown == {name: mean_score(more, name, "skill_validation") for name in shown}
    assert shown.keys() == {"base", "sft", "sft-l1", "dpo", "lambda-1", "lambda-9"}
    assert shown["sft"] != mean_score(more, "sft", "skill")


def test_a_page_has_every_table_once_and_no_id_twice(analysis: Analysis) -> None:
    tables = study_tables(analysis)
    plots = {anchor: study_plots(analysis, anchor) for anchor in SECTIONS}
    page = html(analysis, words(analysis), tables, plots, "x")
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert {table.name for table in tables} <= set(ids)


def test_markdown_has_every_table(analysis: Analysis) -> None:
    tables = study_tables(analysis)
    text = markdown(words(analysis), tables, [])
    assert all(f"## {table.caption}" in text for table in tables)
    assert "Best on validation: ties (l1)" in text
    assert "rounded by at most: retained" in text


def test_names_of_others_are_text_on_the_page_and_in_latex(tmp_path: Path) -> None:
    name = "sft_<b>&\\input{x}%"
    few = {**{each: LEVELS[each] for each in ("base", "sft", "dpo")}, name: LEVELS["ties"]}
    trial = next(arm for arm in arms() if arm.name == "ties").model_copy(update={"name": name})
    study = design((1, 2), arms=[*(arm for arm in arms() if arm.name in few and not arm.curve), trial], contrasts=())
    analysis = analyse(read_study(write_small(tmp_path, study, few, counts=FEW)))
    tables = study_tables(analysis)
    page = html(
        analysis,
        words(analysis),
        tables,
        {anchor: [] for anchor in SECTIONS},
        "x",
    )
    assert "<b>" not in page
    assert "sft_&lt;b&gt;&amp;" in page
    latex = as_latex(tables[0])
    assert r"sft\_\textless{}b\textgreater{}\&\textbackslash{}input\{x\}\%" in latex


def test_latex_is_a_table_of_booktabs() -> None:
    rows = [Row([Cell("a"), Cell("0.5 ± 0.1")], ends_section=True), Row([Cell("b"), Cell("−1")], is_marked=True)]
    assert as_latex(Table([Column("Arm", is_number=False), Column("‖δ‖₂")], rows, "main", "Of 100 %", "A note.")) == (
        "\\begin{table}\n\\caption{Of 100 \\%}\n\\label{tab:main}\n\\centering\\small\n\\begin{tabular}{@{}lr@{}}\n"
        "\\toprule\nArm & $\\Vert$$\\delta$$\\Vert$$_2$ \\\\\n\\midrule\na & 0.5 $\\pm$ 0.1 \\\\\n\\midrule\n"
        "\\bfseries b & \\bfseries $-$1 \\\\\n\\bottomrule\n\\end{tabular}\n"
        "\\par\\smallskip\\footnotesize A note.\n\\end{table}\n"
    )


def test_plots_are_drawn_with_every_seed(analysis: Analysis) -> None:
    (plot,) = study_plots(analysis, "arms")
    first = plot.figure.axes[0].collections[0]  # type: ignore[union-attr]
    assert len(first.get_offsets()) == 3
    assert [each.name for each in study_plots(analysis, "curves")] == ["curve-paft-l1-lambda"]


def test_one_value_is_no_curve(analysis: Analysis) -> None:
    (curve,) = analysis.curves
    alone = replace(
        curve, series={name: [point for point in points if point.x == 1e-4] for name, points in curve.series.items()}
    )
    (said,) = study_plots(replace(analysis, curves=(alone,)), "curves")
    assert isinstance(said, Missing)
    assert "One value of paft_l1_lambda was scored" in said.why
