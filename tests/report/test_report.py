"""The page of a run or of an inspection: whole from any part of a run, the same each time, and safe from what runs are called."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner

from paft_plugin.cli import paft
from paft_plugin.drawing import joined
from paft_plugin.errors import PaftError
from paft_plugin.evaluation.arms import read_run
from paft_plugin.fusion.lint.folders import UNPROVEN
from paft_plugin.inspection.diagnosis.verdict import Diagnosis, judged
from paft_plugin.inspection.inspected import write_inspection
from paft_plugin.report.collect import collect
from paft_plugin.report.run_report import write_report
from paft_plugin.report.sections import diagnosis_remarks
from tests.report.runs import RUN_CONTENT, SCORES, inspect, random_delta, results_content, three_deltas

Run = Callable[..., Path]
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Outline(HTMLParser):
    """Headings, table captions, identifiers and text of a page; notes what is not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[tuple[int, str]] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tables = self.captions = 0
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in named:
            self.ids.append(named["id"] or "")
        self.links += [value for key, value in attrs if key in ("href", "src") and value]
        self.tables += tag == "table"
        self.captions += tag == "caption"
        if re.fullmatch("h[1-6]", tag):
            self.headings.append((int(tag[1]), ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, (tag, self.open)

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)
        if self.open and re.fullmatch("h[1-6]", self.open[-1]):
            level, text = self.headings[-1]
            self.headings[-1] = (level, text + data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def read(page: Path) -> Outline:
    outline = Outline()
    outline.feed(page.read_text(encoding="utf-8"))
    assert outline.open == []
    return outline


def check_shape(page: Path) -> Outline:
    """What every page must be, whatever it is about."""
    outline = read(page)
    levels = [level for level, _ in outline.headings]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert len(outline.ids) == len(set(outline.ids))
    assert outline.tables == outline.captions
    for link in outline.links:
        assert link.startswith(("#", "data:")), link
        assert not link.startswith("#") or link[1:] in outline.ids, link
    assert page.stat().st_size < 3_000_000
    return outline


def test_the_result_comes_first_then_the_evidence_then_how_to_repeat_it(make_run: Run) -> None:
    page = write_report(make_run())
    outline = check_shape(page)
    assert page.name == "report.html"
    titles = [text for level, text in outline.headings if level < 3]
    assert titles == ["Use paft-ties", "Arms", "Training", "Deltas", "Interference", "Checks", "Repeat it"]
    text = outline.text
    assert "Against sequential: skill better by 0.100 [+0.057, +0.143]; preference equivalent." in text
    for arm in SCORES:
        assert arm in text
    for said in (
        "sft-l1: λ goes from 1e-06 to 2.7e-05",
        "Density <0.5> trims nothing.",
        "axolotl 0.19.0",
        "configs/sft.yml 42",
        "skill is acc of my_skill",
    ):
        assert said in text, said
    assert "Not shown" not in text


def test_again_is_the_same_and_a_moved_run_too(make_run: Run, tmp_path: Path) -> None:
    run = make_run(with_models=False)
    page = write_report(run)
    first = page.read_bytes()
    assert write_report(run).read_bytes() == first
    moved = tmp_path / "elsewhere" / "run"
    shutil.copytree(run, moved)
    assert b"Use paft-ties" in write_report(moved).read_bytes()


@pytest.mark.parametrize(
    ("lost", "says"),
    [
        ("inspection", "The branches were not inspected"),
        ("branches", "Not shown: strength and sparsity over training"),
        ("lint", "No lint of a recipe was kept"),
        ("configs", "holds no configs/run.json"),
        ("paft.yml", "Repeat it"),
        ("models", "Use paft-ties"),
    ],
)
def test_a_lost_part_is_a_sentence_and_never_an_error(lost: str, says: str, make_run: Run) -> None:
    run = make_run()
    if (run / lost).is_dir():
        shutil.rmtree(run / lost)
    else:
        (run / lost).unlink()
    assert says in check_shape(write_report(run)).text


def test_results_alone_are_enough(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(results_content()))
    text = check_shape(write_report(tmp_path)).text
    assert "Use paft-ties" in text
    assert text.count("Not shown") == 2


@pytest.mark.parametrize("role", ["skills", "preferences"])
def test_without_a_skill_or_a_preference_the_table_is_still_there(role: str, make_run: Run) -> None:
    text = check_shape(write_report(make_run(results=results_content(**{role: []})))).text
    assert "Not shown: what alignment costs" in text
    assert "sequential" in text


def test_names_are_text_and_never_markup(make_run: Run) -> None:
    scores = {("<script>alert(1)</script>" if name == "paft-ties" else name): values for name, values in SCORES.items()}
    evil = {'<img src="http://x.example/">': random_delta(0, 1e-3, 0.1), **three_deltas()}
    run = make_run(results=results_content(scores), inspection=inspect(evil), with_models=False)
    html = write_report(run).read_text()
    assert "<script>alert" not in html
    assert "<img src=" not in html
    assert html.count("<script>") == 1
    check_shape(write_report(run))


def test_missing_scores_are_blanks(make_run: Run) -> None:
    scores = {**SCORES, "dpo": (None, 1.0, None), "orpo": (None, None, None)}
    text = check_shape(write_report(make_run(results=results_content(scores)))).text
    assert "orpo – – –" in text


def test_a_damaged_lint_or_search_is_said(make_run: Run) -> None:
    run = make_run()
    (run / "lint" / "paft-ties" / "lint.json").write_text("{")
    (run / "search").mkdir()
    (run / "search" / "trials.json").write_text("{}")
    text = check_shape(write_report(run)).text
    assert "lint/paft-ties/lint.json is damaged" in text
    assert "search/trials.json is damaged" in text


def test_a_search_brings_its_own_plot_and_table(make_run: Run) -> None:
    run = make_run()
    trials = [
        {"number": number, "method": "ties", "options": {"density": 0.25}, "is_default": number == 0, "on_front": number == 1,
         "scores": {"skill": 0.5 + number / 10, "style": 0.5}, "stderr": {"skill": 0.01, "style": None}}
        for number in range(3)
    ]  # fmt: skip
    content = {"objectives": [{"name": "skill"}, {"name": "style"}], "trials": trials, "start_with": 1}
    (run / "search").mkdir()
    (run / "search" / "trials.json").write_text(json.dumps(content))
    (run / "search" / "front.png").write_bytes(b"\x89PNG")
    text = check_shape(write_report(run)).text
    assert "3 trials on validation items, 3 of them scored; nothing beats 1." in text
    assert "1 start here ties density 0.25 0.600 ± 0.010 0.500" in text
    assert "iVBORw==" not in text
    (run / "search" / "front.png").unlink()
    assert "front.png is not there" in check_shape(write_report(run)).text


def test_an_inspection_alone_has_a_page_of_its_own(tmp_path: Path) -> None:
    inspection = inspect(three_deltas())
    write_inspection(inspection, tmp_path)
    page = write_report(tmp_path)
    assert page == tmp_path / "inspection.html"
    outline = check_shape(page)
    assert outline.headings[0] == (
        1,
        f"sft-l1 is {inspection.delta('sft-l1').figures.total.sparsity(1e-5):.1%} sparse at 1e-5",
    )
    assert [text for level, text in outline.headings if level == 2] == ["Deltas", "Interference", "About"]


def test_an_inspection_without_pairs_or_deltas_has_a_page_too(tmp_path: Path) -> None:
    write_inspection(inspect({"paft-ties": random_delta(0, 1e-3, 0.5)}, with_pairs=False), tmp_path)
    assert "No pair of deltas was inspected." in check_shape(write_report(tmp_path)).text
    write_inspection(inspect({}), tmp_path)
    assert "Nothing measured" in check_shape(write_report(tmp_path)).text


@pytest.mark.parametrize(("there", "says"), [(True, "nothing to report on"), (False, "no such folder")])
def test_a_folder_with_nothing_is_one_clear_message(there: bool, says: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    if there:
        folder.mkdir()
    with pytest.raises(PaftError, match=says):
        write_report(folder)
    outcome = CliRunner().invoke(paft, ["report", str(folder)])
    assert outcome.exit_code == 2
    assert says in outcome.output
    assert "Traceback" not in outcome.output


def test_the_command_writes_report_and_cards(make_run: Run) -> None:
    run = make_run()
    outcome = CliRunner().invoke(paft, ["report", str(run)])
    assert outcome.exit_code == 0, outcome.output
    assert "report.html: open it in a browser" in outcome.output
    assert "library_name: transformers" in (run / "models" / "paft-ties" / "README.md").read_text()


def test_how_to_repeat_it_is_what_the_pipeline_planned(make_run: Run) -> None:
    run = make_run()
    (run / "configs" / "run.json").write_text(json.dumps(RUN_CONTENT))
    page = write_report(run)
    check_shape(page)
    html = page.read_text()
    assert "<code>axolotl paft run paft.yml</code> does all of it" in html
    assert "# Train SFT\naxolotl train &#39;my configs/sft.yml&#39;" in html
    assert "<p>Two <strong>bold</strong> &lt;b&gt;words&lt;/b&gt;.</p>" in html
    assert "<ul><li>one <code>x</code></li><li>two</li></ul>" in html


@pytest.mark.parametrize(
    ("content", "says"),
    [({"schema": 1}, "damaged"), ({"schema": 7}, "schema 7, and this version reads 3"), ([], "JSON object")],
)
def test_a_damaged_run_file_is_named(make_run: Run, content: object, says: str) -> None:
    run = make_run()
    (run / "configs" / "run.json").write_text(json.dumps(content))
    with pytest.raises(PaftError, match=rf"run\.json: .*{says}"):
        write_report(run)


@pytest.mark.parametrize(("ended", "missed"), [(0.5, True), (0.9, False)])
def test_a_missed_target_is_said_at_first_sight(make_run: Run, ended: float, missed: bool) -> None:
    run = make_run()
    file = run / "branches" / "sft-l1" / "paft.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "sparsity": {"1e-05": ended}}))
    assert ("sft-l1: paft_target_sparsity: 0.9 was missed: 50.0%" in check_shape(write_report(run)).text) == missed


def test_what_arms_left_that_the_run_no_longer_has_is_not_on_its_page(make_run: Run) -> None:
    run = make_run()
    shutil.copytree(run / "branches" / "sft-l1", run / "branches" / "gone-l1")
    shutil.copytree(run / "lint" / "paft-ties", run / "lint" / "paft-gone")
    for name in ("gone-l1", "sft-l1"):
        file = run / "branches" / name / "paft.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "sparsity": {"1e-05": 0.5}}))
    assert "gone" in check_shape(write_report(run)).text, "nothing says what the run is of"
    (run / "configs" / "run.json").write_text(json.dumps(RUN_CONTENT))
    text = check_shape(write_report(run)).text
    assert "gone" not in text
    assert "sft-l1: paft_target_sparsity: 0.9 was missed" in text
    assert "paft-ties: warning PAFT301" in text


def test_a_fusion_that_is_meant_to_be_dense_is_not_asked_for_a_penalty(make_run: Run) -> None:
    run, arms = make_run(), ("paft-ties", "parallel-ties")
    fused = {arm: ["sft-l1" if arm == "paft-ties" else "sft", "dpo"] for arm in arms}
    content = {**RUN_CONTENT, "fused": fused, "arms": {**RUN_CONTENT["arms"], "parallel-ties": "models/parallel-ties"}}
    (run / "configs" / "run.json").write_text(json.dumps(content))
    lint = json.loads((run / "lint" / "paft-ties" / "lint.json").read_text())
    lint["recipes"][0]["findings"][0] |= {"code": UNPROVEN.code, "name": UNPROVEN.name}
    for arm in arms:
        (run / "lint" / arm).mkdir(exist_ok=True)
        (run / "lint" / arm / "lint.json").write_text(json.dumps(lint))
    text = check_shape(write_report(run)).text
    assert "paft-ties: warning PAFT312" in text
    assert "parallel-ties: warning" not in text


def test_sparsities_are_those_that_were_counted(make_run: Run) -> None:
    """Thresholds may have changed since, in a run without the arms whose deltas would be counted anew."""
    run = make_run()
    (run / "configs" / "run.json").write_text(json.dumps({**RUN_CONTENT, "thresholds": [1e-5, 1e-4]}))
    planned = read_run(run)
    assert planned is not None
    found = {arm.name: arm.sparsity for arm in collect(run, planned).arms}
    assert found["sft-l1"] is not None
    assert list(found["sft-l1"]) == ["1e-05"]


def test_what_is_well_of_many_branches_is_one_remark_for_each_signature() -> None:
    pairs = list(itertools.combinations("abcdef", 2))
    checks = [judged("dominance", pair, "clear", "Well.", missing=["x"] if "a" in pair else []) for pair in pairs]
    found = judged("dominance", ("f", "g"), "found", "Ill.", culprit="g")
    remarks = diagnosis_remarks(Diagnosis("run", tuple("abcdef"), ("g",), {}, (*checks, found)))
    assert [remark.label for remark in remarks] == ["Found: dominance (f and g)", "Not found: dominance"]
    assert remarks[1].said.startswith("high confidence: b × c, b × d")
    assert "medium confidence: a × b, a × c" in remarks[1].said
    few = diagnosis_remarks(Diagnosis("run", tuple("abc"), (), {}, tuple(checks[:3])))
    assert [remark.label for remark in few] == [f"Not found: dominance ({joined(pair)})" for pair in pairs[:3]]
