"""What a search leaves for people and machines: a table, `trials.json`, `README.md`, and a recipe for all on the front."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from paft_plugin.evaluation.results import Measure
from paft_plugin.files import write_json, write_text
from paft_plugin.fusion.recipe.settings import RecipeSettings
from paft_plugin.fusion.recipe.write import RecipeRequest, write_recipe
from paft_plugin.search.config import SearchRequest
from paft_plugin.search.study import Finished
from paft_plugin.search.validation import named_tasks

Scores = Sequence[float]


def pareto_front(scores: Sequence[Scores], maximize: Sequence[bool]) -> list[int]:
    """The places of those that none dominates: no other is at least as good at everything and better at something.

    Of several with the same scores the first counts, so a method's default before settings that do no better.

    Args:
        scores: One row for each candidate, one finite number for each objective.
        maximize: For each objective whether more is better.

    Returns:
        Places in `scores`, in order; for one objective the best alone.
    """
    gains = [tuple(value if up else -value for value, up in zip(row, maximize, strict=True)) for row in scores]
    front: list[int] = []
    for place, own in enumerate(gains):
        beaten = any(_covers(other, own) and other != own for other in gains)
        if not beaten and own not in (gains[earlier] for earlier in front):
            front.append(place)
    return front


def even_handed(scores: Sequence[Scores], maximize: Sequence[bool]) -> int:
    """The place of the candidate on the front that gives up least: whose greatest loss against the best of any objective,
    as a share of that best, is smallest. Among equals the smaller sum of losses decides, then the first.

    Args, and the order of places, as in `pareto_front`.
    """
    best = [(max if up else min)(column) for column, up in zip(zip(*scores, strict=True), maximize, strict=True)]

    def losses(place: int) -> list[float]:
        return [abs(value - top) / (abs(top) or 1.0) for value, top in zip(scores[place], best, strict=True)]

    return min(pareto_front(scores, maximize), key=lambda place: (max(losses(place)), sum(losses(place)), place))


def _covers(one: Scores, other: Scores) -> bool:
    return all(first >= second for first, second in zip(one, other, strict=True))


SCHEMA = 1
RECIPES = "recipes"
PLOT = "front.png"


@dataclass(frozen=True)
class Outcome:
    """The trials of a search, and what they come to."""

    request: SearchRequest
    device: str
    """Where it merged: a random method draws other masks elsewhere."""
    goals: Sequence[Measure]
    trials: Sequence[Finished]
    inputs: dict[str, str]
    versions: dict[str, str]
    items: dict[str, int]
    """Task → its number of scored items."""

    @property
    def folder(self) -> Path:
        return search_folder(self.request)

    @property
    def scored(self) -> list[Finished]:
        return [trial for trial in self.trials if trial.scores is not None]

    @property
    def front(self) -> list[Finished]:
        """What nothing beats; with one objective the best alone."""
        return [self.scored[place] for place in pareto_front(_rows(self.scored), self._maximize)]

    @property
    def start(self) -> Finished | None:
        """Where to start: the best, or the one of the front that gives up least."""
        return self.scored[even_handed(_rows(self.scored), self._maximize)] if self.scored else None

    @property
    def _maximize(self) -> list[bool]:
        return [goal.higher_is_better for goal in self.goals]


def search_folder(request: SearchRequest) -> Path:
    """Where a search keeps everything."""
    return request.output_dir / "search"


def recipe_request(request: SearchRequest, trial_method: str, options: dict[str, Any], file: Path) -> RecipeRequest:
    """The recipe of some settings."""
    return RecipeRequest(
        request.base,
        request.sft,
        request.preference,
        trial_method,
        file,
        RecipeSettings(**options),
        seed=request.search.seed,
        merged=search_folder(request) / "models" / file.stem,
    )


def recipe_name(trial: Finished) -> str:
    """`trial-007-ties`."""
    return f"trial-{trial.number:03d}-{trial.method}"


def describe(trial: Finished) -> str:
    """A trial's settings in a few words; weights are those of the SFT and the preference branch."""
    options = trial.options
    parts = [f"{word} {options[word]:g}" for word in ("density", "scale") if word in options]
    if "weight_sft" in options:
        parts.append(f"weights {options['weight_sft']:g}/{options['weight_preference']:g}")
    return ", ".join(parts) or "defaults"


def show(score: float) -> str:
    """A score as tables show it."""
    return f"{score:.3f}" if abs(score) < 10 else f"{score:.1f}"


def table(outcome: Outcome) -> Table:
    """The front, and every method's defaults to compare with; whole at 80 columns with up to three objectives."""
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("", "Trial", "Method", "Settings", *(goal.name.capitalize() for goal in outcome.goals)):
        is_number = heading not in ("", "Method", "Settings")
        shown.add_column(
            heading, justify="right" if is_number else "left", overflow="fold", no_wrap=heading == "Method"
        )
    for row in _table_rows(outcome):
        shown.add_row(*map(Text, row))
    return shown


def write_outcome(outcome: Outcome) -> None:
    """Write `trials.json`, the recipes of the front and `README.md`; the plot is `plot.draw_front`'s."""
    folder = outcome.folder
    wanted = {f"{recipe_name(trial)}.yml": trial for trial in outcome.front}
    for stale in (folder / RECIPES).glob("trial-*.yml"):
        if stale.name not in wanted:
            stale.unlink()
    for name, trial in wanted.items():
        write_recipe(recipe_request(outcome.request, trial.method, trial.options, folder / RECIPES / name))
    write_json(folder / "trials.json", content(outcome))
    write_text(folder / "README.md", render_readme(outcome))


def content(outcome: Outcome) -> dict[str, Any]:
    """What `trials.json` holds."""
    front = {trial.number for trial in outcome.front}
    return {
        "schema": SCHEMA,
        "objectives": [
            {"name": goal.name, "task": goal.task, "metric": goal.key, "direction": goal.direction,
             "items": outcome.items[goal.task]}
            for goal in outcome.goals
        ],
        "seed": outcome.request.search.seed,
        "device": outcome.device,
        "inputs": outcome.inputs,
        "versions": outcome.versions,
        "trials": [
            {
                "number": trial.number,
                "method": trial.method,
                "options": trial.options,
                "is_default": trial.is_default,
                "scores": _named(outcome.goals, trial.scores),
                "stderr": _named(outcome.goals, trial.stderr),
                "seconds": round(trial.seconds, 3),
                "on_front": trial.number in front,
                "recipe": f"{RECIPES}/{recipe_name(trial)}.yml" if trial.number in front else None,
            }
            for trial in outcome.trials
        ],
        "start_with": outcome.start.number if outcome.start else None,
    }  # fmt: skip


def render_readme(outcome: Outcome) -> str:
    """The search's `README.md` as Markdown."""
    heading = ["", "Trial", "Method", "Settings", *(goal.name for goal in outcome.goals)]
    rows = [f"| {' | '.join(cells)} |" for cells in [heading, ["---"] * len(heading), *_table_rows(outcome)]]
    lines = ["# Search of merge settings", "", _summary(outcome), "", *rows, "", legend(outcome), ""]
    lines += [f"![Every trial, and the front]({PLOT})", "", "## Go on", "", *_commands(outcome)]
    return "\n".join(lines) + "\n"


def legend(outcome: Outcome) -> str:
    """What the marks of the table mean, and how far its numbers can be trusted."""
    many = len(outcome.goals) > 1
    marks = "★ on the front, ▶ the one that gives up least of the best of any objective" if many else "★ the best"
    return (
        f"{marks}; the rest: each method at its defaults. Weights: SFT/preference. Scores are on validation items, and the "
        f"best of many trials flatters itself: standard errors go up to {_largest_stderr(outcome)}, and only other items "
        "can judge."
    )


def merge_commands(outcome: Outcome, trial: Finished) -> list[list[str]]:
    """How to merge a trial's recipe and to score the model on the tasks that judge it."""
    search, name = outcome.request.search, recipe_name(trial)
    model = outcome.folder / "models" / name
    recipe = outcome.folder / RECIPES / f"{name}.yml"
    commands = [["axolotl", "paft", "merge", str(recipe), str(model), "--seed", str(search.seed),
                 "--device", outcome.device]]  # fmt: skip
    if search.test_tasks is not None:
        commands.append(
            ["lm_eval", "--model", "hf", "--model_args", f"pretrained={model},dtype={search.dtype},softmax_dtype=float32",
             "--include_path", str(search.test_tasks), "--tasks", named_tasks(outcome.goals), "--apply_chat_template",
             "--batch_size", str(search.batch_size)]
        )  # fmt: skip
    return commands


def _commands(outcome: Outcome) -> list[str]:
    if outcome.start is None:
        return ["No trial has a finite score."]
    lines = [
        f"Merge the one to start with (or another of `{RECIPES}/`)"
        + (", and score it on the test items:" if outcome.request.search.test_tasks else ":")
    ]
    commands = [shlex.join(command) for command in merge_commands(outcome, outcome.start)]
    return [*lines, "", "```sh", *commands, "```"]


def _summary(outcome: Outcome) -> str:
    goals = ", ".join(
        f"{goal.name} (`{goal.task}`, `{goal.key}`, {'more' if goal.higher_is_better else 'less'} is better, "
        f"{outcome.items[goal.task]} items)"
        for goal in outcome.goals
    )
    methods = ", ".join(outcome.request.search.methods)
    return (
        f"{len(outcome.trials)} trials of {methods}, seed {outcome.request.search.seed}, scored by lm-eval on {goals}."
    )


def _table_rows(outcome: Outcome) -> list[list[str]]:
    front, start = {trial.number for trial in outcome.front}, outcome.start
    rows = []
    for trial in sorted(outcome.scored, key=lambda trial: (trial.number not in front, trial.number)):
        if trial.number in front or trial.is_default:
            mark = "★" if trial.number in front else ""
            mark += "▶" if start and trial.number == start.number and len(outcome.goals) > 1 else ""
            rows.append(
                [
                    mark,
                    str(trial.number),
                    trial.method,
                    describe(trial),
                    *map(show, trial.scores or ()),
                ]
            )
    return rows


def _largest_stderr(outcome: Outcome) -> str:
    known = [error for trial in outcome.front for error in trial.stderr if error is not None]
    return f"{max(known):.2g}" if known else "unknown"


def _named(goals: Sequence[Measure], values: Sequence[float | None] | None) -> dict[str, float | None] | None:
    return None if values is None else {goal.name: value for goal, value in zip(goals, values, strict=True)}


def _rows(trials: Sequence[Finished]) -> list[tuple[float, ...]]:
    return [trial.scores for trial in trials if trial.scores is not None]
