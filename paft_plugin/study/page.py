"""What a study leaves for people and machines: `study.html`, `README.md`, `study.json`, tables in LaTeX and figures.

All of it follows from the small files of `scores.py`: the same files give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from paft_plugin.drawing import Missing, Plot, as_png, joined
from paft_plugin.errors import PaftError
from paft_plugin.evaluation.results import VALIDATION
from paft_plugin.files import inside, read_json_or_nothing, write_bytes, write_json, write_text
from paft_plugin.formats import limits, number, signed
from paft_plugin.reading import read_text
from paft_plugin.report.inspection_page import Part
from paft_plugin.report.page import prose, shown
from paft_plugin.study.analysis import Analysis, StudyRow, analyse
from paft_plugin.study.chosen import EVERY_WAY, RULE
from paft_plugin.study.design import DESIGN_FILE, PRIMARY
from paft_plugin.study.effects import change, mean_score
from paft_plugin.study.plots import study_plots
from paft_plugin.study.scores import FIGURES_FILE, ITEMS, read_study
from paft_plugin.study.tables import STUDY_FILE, study_tables
from paft_plugin.tables import VERDICT_WORDS, Table, as_latex, as_markdown
from paft_plugin.templates import render

MARK, MOST_README = "axolotl paft study --recompute", 16 << 20
"""What every `README.md` of a study says, and the bytes of one."""
PAGE, README, TABLES, PLOTS = Path("study.html"), Path("README.md"), Path("tables"), Path("figures")
"""Below the study's folder."""
SCHEMA = 1
SECTIONS = {
    "arms": ("Arms", ("chosen",), ("choices", "branches", "arms")),
    "contrasts": ("Contrasts", ("contrasts",), ()),
    "controls": ("Controls", ("controls",), ()),
    "fronts": ("Fronts", ("fronts",), ()),
    "curves": ("Curves", (), ("curve-",)),
    "cost": ("Cost", ("cost",), ()),
}
"""Section of plots → its title, and how the names of its tables begin, and of those that are folded away."""


@dataclass(frozen=True)
class Words:
    """What a study's page and its Markdown say in sentences."""

    headline: str
    lead: str
    facts: Sequence[str]
    notes: Sequence[str]
    method: Sequence[str]


def write_study(folder: Path) -> list[Table]:
    """Write every table and figure of the study in `folder` from its small files alone; returns the tables.

    Raises:
        PaftError: A file is missing, damaged, or contradicts the others; all that is wrong. Or `README.md` is somebody else's.
    """
    refuse_foreign(folder)
    analysis = analyse(read_study(folder))
    tables, said = study_tables(analysis), words(analysis)
    plots = {section: study_plots(analysis, section) for section in SECTIONS}
    drawn = [plot for own in plots.values() for plot in own if isinstance(plot, Plot)]
    pictures = {inside(folder, PLOTS / f"{plot.name}.png"): as_png(plot) for plot in drawn}
    latex = {inside(folder, TABLES / f"{table.name}.tex"): as_latex(table) for table in tables}
    written = [file.relative_to(folder).as_posix() for file in (*pictures, *latex)]
    _remove_stale(folder, written)
    for file, picture in pictures.items():
        write_bytes(file, picture)
    for file, text in latex.items():
        write_text(file, text)
    write_json(inside(folder, STUDY_FILE), {**content(analysis), "files": written})
    write_text(inside(folder, README), markdown(said, tables, drawn, analysis.scores.design.description.strip()))
    write_text(inside(folder, PAGE), html(analysis, said, tables, plots, folder.resolve().name))
    return tables


def refuse_foreign(folder: Path) -> None:
    """Raise `PaftError` if `folder` has a `README.md` that no study wrote: it would be lost."""
    file = folder / README
    if file.is_file() and not ((folder / DESIGN_FILE).is_file() and MARK in read_text(file, MOST_README)):
        raise PaftError(
            f"{file}: was not written by a study, which would overwrite it. Move it, or set another output_dir."
        )


def _remove_stale(folder: Path, wanted: Sequence[str]) -> None:
    """Figures and tables of an analysis before this one, by its own list: others are not ours."""
    before = read_json_or_nothing(folder / STUDY_FILE).get("files")
    for name in map(str, before if isinstance(before, list) else ()):
        if name not in wanted and Path(name).parent in (PLOTS, TABLES) and (file := inside(folder, name)).is_file():
            file.unlink()


def words(analysis: Analysis) -> Words:
    """The result first."""
    best = analysis.best
    seeds = f"{len(analysis.seeds)} seed{'s' * (len(analysis.seeds) > 1)}"
    headline = f"{len(analysis.rows)} arms, {seeds}"
    lead = "No way of combining could be chosen on validation items."
    if best is not None:
        headline = f"Best on validation: {_way(best.way, best.form)}"
        primary = best.levels.get(PRIMARY)
        value = number(primary.value if primary else None)
        lead = f"Its primary is {value} on test items, over {seeds}, of {len(analysis.rows)} arms."
    return Words(headline, lead, list(_verdicts(analysis)), analysis.notes, list(_method(analysis)))


def _way(way: str, form: str) -> str:
    return f"{way} ({form})" if form else way


def _verdicts(analysis: Analysis) -> Iterator[str]:
    """How the declared contrasts came out, and what the best way is against each default that trains in a row."""
    found = [one.verdict if one.change else "not tested" for one in analysis.answers]
    if found:
        counts = [
            f"{found.count(each)} {VERDICT_WORDS.get(each, each).lstrip('▲▼=? ')}" for each in dict.fromkeys(found)
        ]
        yield f"Of {len(found)} declared contrast{'s' * (len(found) > 1)}: {', '.join(counts)}."
    yield from _beside_the_best(analysis)
    best = analysis.best
    for row in analysis.rows:
        if best is not None and row.name != best.name and row.is_chosen and row.way.startswith("sequential"):
            found_change = change(analysis.scores, row.name, best.name, PRIMARY)
            if found_change is not None:
                pair = {best.name, row.name}
                asked = any(
                    {one.one, one.other} == pair and one.contrast.measure == PRIMARY for one in analysis.answers
                )
                yield (
                    f"Against {row.name}, the best of {_way(row.way, row.form)}: {signed(found_change.value)} "
                    f"{limits(found_change.interval)} in primary ({'declared' if asked else 'exploratory'})."
                )


def _beside_the_best(analysis: Analysis) -> Iterator[str]:
    """What came next on validation items, and whether a branch alone is as good there."""
    best, chosen = analysis.best, analysis.taken.get(EVERY_WAY)
    if best is None or chosen is None or best.name not in chosen.candidates:
        return
    rows, merits = {row.name: row for row in analysis.rows}, chosen.candidates
    own = merits[best.name]
    others = [name for name in merits if name != best.name]  # in the design's order, where two are alike
    for name in sorted(others, key=lambda name: -merits[name])[:1]:
        yield f"Next on validation items: {name}, {number(merits[name])} against {number(own)}{_on_test(rows[name])}."
    branches = [row.name for row in analysis.rows if row.group == "branch"]
    alone = {name: mean_score(analysis.scores, name, PRIMARY + VALIDATION) for name in branches}
    known = {name: merit for name, merit in alone.items() if merit is not None and merit >= own}
    for name in sorted(known, key=lambda name: -known[name])[:1]:
        yield f"No way of combining is better there than {name} alone: {number(known[name])}{_on_test(rows[name])}."


def _on_test(row: StudyRow) -> str:
    return f"; {number(row.levels[PRIMARY].value)} on test items" if PRIMARY in row.levels else ""


def _method(analysis: Analysis) -> Iterator[str]:
    seeds = len(analysis.seeds)
    yield RULE
    if seeds > 1:
        yield (
            "Intervals are over seeds and items: seeds that answer the same items vary together with them. The half of an "
            "interval is √(t²·V_seeds + t²·V_items), each t with the degrees of freedom of its part, the seeds' with one less "
            "than an arm has seeds: V_seeds is the variance of the seeds' means by their number, V_items what is added by "
            "seeds having items in common. It is never less than the same seeds would vary on other items. Differences are "
            "taken within each seed, item by item."
        )
    if own := _with_items_of_their_own(analysis):
        yield f"Not all seeds answer the same items of {joined(own)}."
    rounding = {name: step for name, step in analysis.scores.rounding.items() if step}
    if rounding:
        said = "; ".join(f"{name} ± {step:.2g}" for name, step in sorted(rounding.items()))
        yield f"Right and wrong are kept as bits; other items are rounded by at most: {said}."
    if analysis.fronts:
        yield (
            "Hypervolumes: skill and preference are scaled from the base's mean (0) to the best branch's (1); what is "
            "retained is the share of the base's, averaged over its measures, of a measure in nats exp(base − arm). The "
            "reference point is 0."
        )


def _with_items_of_their_own(analysis: Analysis) -> list[str]:
    """The measures of which not every seed has the same items."""
    items = analysis.scores.items.values()
    names = [measure.name for measure in analysis.measures]
    return [name for name in names if len({kept[name].items for kept in items if name in kept}) > 1]


def content(analysis: Analysis) -> dict[str, Any]:
    """What `study.json` holds: everything that the tables show, unrounded; null where a number is not known."""
    answers = [{**_plain(one), "p": one.p, "verdict": one.verdict} for one in analysis.answers]
    controls = [
        {**_plain(row), "answers": {way: {**_plain(one), "verdict": one.verdict} for way, one in row.answers.items()}}
        for row in analysis.controls
    ]
    return {
        "schema": SCHEMA,
        "seeds": list(analysis.seeds),
        "measures": [_plain(measure) for measure in analysis.measures],
        "arms": [_plain(row) for row in analysis.rows],
        "taken": {
            name: {"arm": each.arm.name if each.arm else None, "candidates": dict(each.candidates), "why": each.why}
            for name, each in analysis.taken.items()
        },
        "contrasts": answers,
        "controls": controls,
        "fronts": [_plain(front) for front in analysis.fronts],
        "curves": [_plain(curve) for curve in analysis.curves],
        "cost": list(analysis.scores.figures.cost),
        "notes": list(analysis.notes),
        "rounding": dict(analysis.scores.rounding),
    }


def _plain(value: Any) -> dict[str, Any]:
    """A dataclass as JSON knows it; infinity is null."""
    plain: dict[str, Any] = json.loads(TypeAdapter(type(value)).dump_json(value))
    return plain


def markdown(said: Words, tables: Sequence[Table], figures: Sequence[Plot], description: str = "") -> str:
    """The `README.md`."""
    shown_tables = [{"caption": table.caption, "text": as_markdown(table), "note": table.note} for table in tables]
    return render(
        "paft_plugin.study",
        "study.md",
        said=said,
        description=description,
        tables=shown_tables,
        figures=figures,
        folder=PLOTS,
    )


def html(
    analysis: Analysis, said: Words, tables: Sequence[Table], plots: dict[str, list[Plot | Missing]], name: str
) -> str:
    """The page of the study called `name`."""
    sections = {}
    for anchor, (title, *names) in SECTIONS.items():
        opened, folded = ([table for table in tables if table.name.startswith(some)] if some else [] for some in names)
        drawn, missing = shown(plots[anchor])
        if opened or folded or drawn or missing:
            sections[anchor] = title, Part(opened, folded, drawn, missing)
    return render(
        "paft_plugin.study",
        "study.html",
        title=f"{said.headline} · {name}",
        brand=f"PAFT study · {name}",
        made_by="axolotl paft study",
        sections=[
            ("result", "Result"),
            *((f"{anchor}-section", title) for anchor, (title, _) in sections.items()),
            ("method", "Method"),
        ],
        said=said,
        description=prose(analysis.scores.design.description),
        parts=sections,
        files=[DESIGN_FILE, FIGURES_FILE, ITEMS],
    )
