"""Gathers what the stages of a run left behind into its `results.json` and `README.md`.

`run.json` says what there should be, scores and inspections what there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from paft_plugin.evaluation.arms import RunFile, read_run
from paft_plugin.evaluation.held_out_rows import HELD_OUT, SUMMARY, HeldOutSummary
from paft_plugin.evaluation.results import RESULTS, ArmResult, Results, gather, item_values, read_scores
from paft_plugin.files import inside, write_text
from paft_plugin.formats import number, threshold_key
from paft_plugin.inspection.inspected import INSPECTION_FILE, InspectedDelta, read_inspection
from paft_plugin.report.arm_tables import arm_table, comparison_note, swap_tables, tax_table
from paft_plugin.report.choice import choose
from paft_plugin.report.differences import comparisons, silent_measures
from paft_plugin.tables import VERDICT_WORDS, as_markdown
from paft_plugin.templates import render

INSPECTIONS = (Path("inspection") / "branches", Path("inspection") / "fused")
"""Where a run keeps those of its branches and of its fused models."""


def write_results(run_dir: Path) -> None:
    """Write `results.json` and `README.md` of the run in `run_dir`; of a folder that is no run, nothing.

    Raises:
        PaftError: What the run left cannot be read.
    """
    run = read_run(run_dir)
    if run is None:
        return
    results = collect(run_dir, run)
    results.write(inside(run_dir, RESULTS))
    rows = HeldOutSummary.read_or_nothing(run_dir / HELD_OUT / SUMMARY)
    write_text(inside(run_dir, "README.md"), readme(run, results, run_dir.resolve().name, rows))


def collect(run_dir: Path, run: RunFile) -> Results:
    """Every arm's scores, and the sparsity of its delta over the tensors that the branches change.

    Of a fused model the other tensors are left out: they are the base's, and would make any delta look sparse.
    """
    files = (inside(run_dir, Path("scores") / arm.name / "scores.json") for arm in run.arms)
    measures, scores = read_scores(file for file in files if file.is_file())
    sparsities = _sparsities(run_dir, run)
    arms = [
        ArmResult(
            arm=arm,
            **(scores[arm.name].model_dump() if arm.name in scores else {}),
            sparsity=sparsities.get(arm.name, {}),
            model=arm.model,
            items=item_values(run_dir, arm.name, scores[arm.name].scores) if arm.name in scores else {},
        )
        for arm in run.arms
    ]
    return gather(measures, arms, run.skills, run.preferences, run.margins)


def readme(run: RunFile, results: Results, name: str, rows: HeldOutSummary | None = None) -> str:
    """The `README.md` of the run called `name`: its table, what its differences say, and the commands that repeat it by hand.

    `rows`: how many were held out.
    """
    choice = choose(results)
    asked = [one for one in comparisons(results, choice.arm) if any(one.differences)]
    return render(
        "paft_plugin.report",
        "run.md",
        name=name,
        run=run,
        rows=rows,
        silent=silent_measures(results),
        validation=results.validation,
        table=as_markdown(arm_table(results)),
        taxes=as_markdown(taxes) if (taxes := tax_table(results)) else "",
        choice=choice,
        swaps=[(table.caption, as_markdown(table), table.note) for table in swap_tables(results)],
        comparisons=asked,
        comparisons_note="" if not asked else comparison_note(asked),
        words=VERDICT_WORDS,
        number=number,
    )


def _sparsities(run_dir: Path, run: RunFile) -> dict[str, dict[str, float]]:
    """Arm → threshold → share of entries with |δ| ≤ threshold; the base model's delta is zero."""
    folders = [inside(run_dir, place) for place in INSPECTIONS if (run_dir / place / INSPECTION_FILE).is_file()]
    inspections = list(map(read_inspection, folders))
    if not inspections:
        return {}
    changed = {tensor.name for delta in inspections[0].deltas for tensor in delta.figures.tensors}
    whole = {threshold_key(threshold): 1.0 for threshold in run.thresholds}
    found = {arm.name: whole for arm in run.arms if arm.kind == "base"}
    deltas = [delta for inspection in inspections for delta in inspection.deltas]
    return found | {delta.name: _over(delta, changed, run.thresholds) for delta in deltas}


def _over(delta: InspectedDelta, names: set[str], thresholds: Sequence[float]) -> dict[str, float]:
    figures = [tensor.figures for tensor in delta.figures.tensors if tensor.name in names]
    entries = sum(each.entries for each in figures)
    # Inspections of another run in the same folder may have counted by other thresholds.
    keys = [key for key in map(threshold_key, thresholds) if all(key in each.small for each in figures)]
    return {key: sum(each.small[key] for each in figures) / entries for key in keys} if entries else {}
