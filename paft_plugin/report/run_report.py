"""`report/report.html` of a run: the result first, then the evidence, then how to repeat it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from paft_plugin.deltas.proof import Proof
from paft_plugin.errors import PaftError
from paft_plugin.evaluation.arms import Arm, RunFile, Step, arm_named, read_run
from paft_plugin.evaluation.results import RESULTS, ArmResult, Results, read_results
from paft_plugin.files import PROOF_FILE, below, inside, read_json_or_nothing, write_text
from paft_plugin.formats import number, threshold_key
from paft_plugin.inspection.diagnosis import diagnose
from paft_plugin.inspection.inspected import INSPECTION_FILE, Inspection, read_inspection
from paft_plugin.inspection.training_log import Curve, read_curve
from paft_plugin.penalty.strength import missed_target
from paft_plugin.reading import read_bytes
from paft_plugin.report.arm_tables import arm_table, comparison_table, swap_tables, tax_table
from paft_plugin.report.choice import RULE, Choice, choose
from paft_plugin.report.collect import INSPECTIONS
from paft_plugin.report.differences import BASELINES, Difference, difference, silent_measures
from paft_plugin.report.inspection_page import deltas_part, pairs_part, write_inspection_page
from paft_plugin.report.page import prose, shown
from paft_plugin.report.plots import RunData, run_plots
from paft_plugin.report.sections import Remark, diagnosis_remarks, lint_remarks, made_for, search_part
from paft_plugin.search.alpha_curve import ALPHA_FILE, CURVES, AlphaCurve
from paft_plugin.tables import Cell, number_cell
from paft_plugin.templates import render

COARSE = 5
"""Margins: items that show only greater differences are said to be too few."""
REPORT = Path("report") / "report.html"
NO_INSPECTION = "The branches were not inspected: axolotl paft inspect does it."
SECTIONS = (
    ("result", "Result"),
    ("arms-section", "Arms"),
    ("training", "Training"),
    ("deltas-section", "Deltas"),
    ("interference-section", "Interference"),
    ("checks", "Checks"),
    ("search", "Search"),
    ("repeat", "Repeat it"),
)


def write_report(folder: Path) -> Path:
    """Write the report of the run in `folder`, or of an inspection if that is all it holds; returns the page.

    Raises:
        PaftError: there is nothing to report on, or what there is cannot be read.
    """
    if not folder.is_dir():
        raise PaftError(f"{folder}: no such folder. Give the output_dir of a run, or a folder with an inspection.")
    results = read_results(folder)
    if results is None:
        for place in (INSPECTIONS[0], Path()):  # a run without results, or a folder that is nothing but an inspection
            if (folder / place / INSPECTION_FILE).is_file():
                return write_inspection_page(inside(folder, place))
        raise PaftError(
            f"{folder}: neither {RESULTS} nor {INSPECTION_FILE} is there, so there is nothing to report on. Give the "
            "output_dir of a run that has ended, or a folder that `axolotl paft inspect` wrote."
        )
    page = inside(folder, REPORT)
    write_text(page, report_html(folder, results))
    return page


def report_html(run: Path, results: Results) -> str:
    """The page of the run in `run`."""
    choice = choose(results)
    inspection = _inspection(run)
    planned = read_run(run)
    is_there = made_for(planned)
    search, lint = search_part(run), lint_remarks(run, planned)
    diagnosis, no_diagnosis = _diagnosis(run)
    repeat, curves = how_to_repeat(run, planned), _curves(run, is_there, [one.arm for one in results.arms])
    files = below(run, f"{CURVES}/*/{ALPHA_FILE}")
    ways = [way for file in files if is_there(file.parent.name) and (way := AlphaCurve.read_or_nothing(file))]
    data = RunData(results, choice, curves, _targets(run, curves), ways)
    name = run.absolute().name
    return render(
        "paft_plugin.report",
        "report.html",
        title=f"{choice.headline} · {name}",
        brand=f"PAFT run · {name}",
        made_by="axolotl paft report",
        sections=[section for section in SECTIONS if section[0] != "search" or search is not None],
        choice=choice,
        rule=RULE,
        tiles={cost.measure.name: _tile(choice.arm, cost) for cost in choice.costs} if choice.arm else {},
        silent=silent_measures(results),
        facts=[*_facts(results, choice, diagnosis, lint), *missed_targets(run, planned)],
        arms=arm_table(results, choice),
        comparisons=comparison_table(results, choice),
        taxes=tax_table(results),
        swaps=swap_tables(results),
        arm_plots=shown(run_plots(data, "arms")),
        training=shown(run_plots(data, "training")),
        deltas=None if inspection is None else deltas_part(inspection),
        pairs=None if inspection is None else pairs_part(inspection),
        no_inspection=NO_INSPECTION,
        diagnosis=diagnosis,
        no_diagnosis=no_diagnosis,
        lint=lint,
        search=search,
        repeat=repeat,
        description=prose(repeat.description),
        measures=results.measures,
    )


def _inspection(run: Path) -> Inspection | None:
    folder = inside(run, INSPECTIONS[0])
    return read_inspection(folder) if (folder / INSPECTION_FILE).is_file() else None


def _diagnosis(run: Path) -> tuple[list[Remark] | None, str]:
    """What the diagnosis says, or why there is none."""
    try:
        return diagnosis_remarks(diagnose(run)), ""
    except PaftError as error:
        return None, f"Not diagnosed: {error}"


def _curves(run: Path, is_there: Callable[[str], bool], arms: Sequence[Arm]) -> list[Curve]:
    """Of every branch of which anything was logged, the SFT branches first."""
    names = sorted(
        filter(is_there, (folder.name for folder in below(run, "branches/*") if folder.is_dir())),
        key=lambda name: (not arm_named(name, arms).is_sft, name),
    )
    return [curve for name in names if (curve := read_curve(run, name)) is not None]


def _targets(run: Path, curves: Sequence[Curve]) -> dict[str, tuple[str, float]]:
    """Branch → threshold and sparsity that it was to end at, of those that had a target."""
    targets = {}
    for curve in curves:
        proof = Proof.read_or_nothing(run / "branches" / curve.branch / PROOF_FILE)
        if proof and proof.target_sparsity is not None and proof.target_threshold is not None:
            targets[curve.branch] = (threshold_key(proof.target_threshold), proof.target_sparsity)
    return targets


def missed_targets(run: Path, planned: RunFile | None) -> list[str]:
    """What to say of each branch of a run, as it was `planned`, that ended far from its `paft_target_sparsity`."""
    is_there = made_for(planned)
    files = {file.parent.name: file for file in below(run, f"branches/*/{PROOF_FILE}")}
    proofs = {branch: Proof.read_or_nothing(file) for branch, file in files.items() if is_there(branch)}
    return [f"{branch}: {missed}" for branch, proof in proofs.items() if proof and (missed := missed_target(proof))]


def _tile(arm: ArmResult, cost: Difference) -> Cell:
    """One measure of the chosen arm; `detail` says how far it is from the arm that it is compared with."""
    name, itself = cost.measure.name, cost.before is cost.after
    against = "the best of all arms" if itself else f"{cost} against {cost.before.name}"
    if cost.verdict == "unclear" and not itself:
        against += f"; {cost.sight}"
    score = number_cell(arm.scores[name], number, arm.reach(name))
    return replace(score, detail=against, verdict="best" if itself else cost.verdict)


def _facts(
    results: Results, choice: Choice, diagnosis: Sequence[Remark] | None, lint: Sequence[Remark] | None
) -> list[str]:
    """What else to know at first sight, in a line each: the paper's first question, and what the checks found."""
    facts = []
    for baseline in results.arms:
        if baseline.arm.kind in BASELINES and choice.arm is not None and choice.arm is not baseline:
            changes = [difference(baseline, choice.arm, results.measure(name)) for name in results.goals]
            said = [f"{change.measure.name} {_in_words(change)}" for change in changes if change is not None]
            facts += [f"Against {baseline.name}: {'; '.join(said)}."] if said else []
    facts += [
        f"{cost.measure.name}: {cost.change.items} items show differences from {number(cost.change.detectable)} only. Score more."
        for cost in choice.costs
        if cost.verdict == "unclear" and cost.change and cost.measure.margin
        if cost.change.detectable > COARSE * cost.measure.margin
    ]
    for what, remarks, wrong, lesser in (
        ("Diagnosis of the branches", diagnosis, "failure signature", "open question"),
        ("Lint of the recipes", lint, "error", "warning"),
    ):
        if remarks is not None:
            bad = _counted(sum(remark.kind == "bad" for remark in remarks), wrong)
            facts.append(f"{what}: {bad}, {_counted(sum(remark.kind == 'plain' for remark in remarks), lesser)}.")
    return facts


def _in_words(change: Difference) -> str:
    if change.verdict == "equivalent":
        return "equivalent"
    if change.verdict == "unclear":
        return f"not told apart with {change.sight}"
    return f"{change.verdict} by {number(abs(change.value))} {change.limits}".rstrip()


def _counted(count: int, what: str) -> str:
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"


SEED = re.compile(r"^seed:\s*(\d+)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Repeat:
    """All that is known of how a run was made."""

    steps: Sequence[Step]
    versions: Sequence[tuple[str, str]]
    seeds: Sequence[tuple[str, str]]
    """What they are of → the seed."""
    config: str | None
    """The run's own `paft.yml`, if it lies in the folder."""
    description: str
    """What the user says of the run, in Markdown; may be empty."""


def how_to_repeat(run: Path, planned: RunFile | None) -> Repeat:
    """What the folder `run` and its `run.json` say of its making; what they don't say is missing, which is no error."""
    records = sorted([*below(run, f"branches/*/{PROOF_FILE}"), *below(run, f"models/*/{PROOF_FILE}")])
    versions: dict[str, str] = {}
    seeds: dict[str, str] = {}
    for file in records:
        record = read_json_or_nothing(file)
        for package, version in (record.get("versions") or {}).items():
            versions.setdefault(str(package).replace("_", "-"), str(version))
        if record.get("seed") is not None:
            seeds[f"{file.parent.parent.name}/{file.parent.name}"] = str(record["seed"])
    for file in below(run, "configs/*.yml"):
        if found := SEED.search(read_bytes(file).decode("utf-8", errors="replace")):
            seeds[f"configs/{file.name}"] = found[1]
    return Repeat(
        planned.stages if planned else (),
        sorted(versions.items()),
        sorted(seeds.items()),
        "paft.yml" if (run / "paft.yml").is_file() else None,
        planned.description if planned else "",
    )
