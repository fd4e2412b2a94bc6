"""What `axolotl paft search` left in a run's folder: its own plot, and the trials that nothing beats as a table."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from markupsafe import Markup

from paft_plugin.drawing import Missing
from paft_plugin.formats import measured, number
from paft_plugin.report.page import Shown
from paft_plugin.tables import Cell, Column, Row, Table

MOST_BYTES = 1 << 20
"""Of the plot: the whole page stays under 3 MB."""


@dataclass(frozen=True)
class SearchPart:
    """The section of a page."""

    said: str
    table: Table
    plot: Shown | Missing


def search_part(run: Path) -> SearchPart | Missing | None:
    """The search in `run`; None without one."""
    file = run / "search" / "trials.json"
    if not file.is_file():
        return None
    try:
        return _part(run, json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError):
        return Missing("search", "Search of merge settings", f"{file.relative_to(run)} is damaged.")


def _part(run: Path, content: dict[str, Any]) -> SearchPart:
    goals = [str(goal["name"]) for goal in content["objectives"]]
    trials = [trial for trial in content["trials"] if trial["scores"] is not None]
    front = [trial for trial in trials if trial["on_front"]]
    start = content["start_with"]
    rows = [
        Row(
            [
                Cell(f"{trial['number']}", trial["number"]),
                Cell(str(trial["method"])),
                Cell(", ".join(f"{name} {measured(value)}" if isinstance(value, float) else f"{name} {value}"
                               for name, value in trial["options"].items()) or "defaults"),
                *(_score(trial, goal) for goal in goals),
            ],
            is_marked=trial["number"] == start,
            tag="start here" if trial["number"] == start else "on the front" if trial["on_front"] else "defaults",
        )
        for trial in [*front, *(trial for trial in trials if trial["is_default"] and not trial["on_front"])]
    ]  # fmt: skip
    said = (
        f"{len(content['trials'])} trials on validation items, {len(trials)} of them scored; nothing beats {len(front)}. "
        "The best of many trials flatters itself: only other items can judge."
    )
    table = Table(
        [Column("Trial"), Column("Method", is_number=False), Column("Settings", is_number=False), *map(Column, goals)],
        rows,
        "trials",
        "The trials on the front, and each method at its defaults",
    )
    return SearchPart(said, table, _plot(run, goals, front, start))


def _score(trial: dict[str, Any], goal: str) -> Cell:
    score, error = trial["scores"].get(goal), (trial["stderr"] or {}).get(goal)
    return Cell(number(score), "" if score is None else score, "" if error is None else number(error))


def _plot(run: Path, goals: list[str], front: list[dict[str, Any]], start: int | None) -> Shown | Missing:
    name, title = "front", "The Pareto front of the search" if len(goals) > 1 else "The course of the search"
    file = run / "search" / "front.png"
    if not file.is_file():
        return Missing(name, title, f"{file.relative_to(run)} is not there.")
    content = file.read_bytes()
    if len(content) > MOST_BYTES:
        return Missing(name, title, f"{file.relative_to(run)} is too large for this page: look at it there.")
    alt = f"Scatter charts of the trials by {', '.join(goals)}." if len(goals) > 1 else f"Chart of {goals[0]} by trial."
    caption = f"Filled and numbered: the {len(front)} trials that no other beats"
    caption += "." if start is None else f"; trial {start} gives up least of the best of any objective."
    picture = f'<img alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(content).decode("ascii")}">'
    return Shown(name, title, caption, Markup(picture), wide=True)  # noqa: S704 - its one text is escaped
