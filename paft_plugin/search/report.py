"""What a search leaves for people and machines: a table, `trials.json`, `README.md`, and a recipe for all on the front."""

from __future__ import annotations

import operator
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paft_plugin.evaluation.results import Measure
from paft_plugin.files import write_json, write_text
from paft_plugin.formats import number
from paft_plugin.fusion.recipe.settings import numbers_of
from paft_plugin.fusion.recipe.write import RecipeRequest, write_recipe
from paft_plugin.search.config import SearchRequest
from paft_plugin.search.space import SEARCHED, settings_of, values_of
from paft_plugin.search.study import Finished
from paft_plugin.search.validation import named_tasks
from paft_plugin.tables import Cell, Column, Row, Table, as_markdown
from paft_plugin.templates import render

SCHEMA = 1
RECIPES = "recipes"
PLOT = "front.png"
Scores = Sequence[float]


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
        """Where the search keeps everything."""
        return self.request.folder

    @property
    def scored(self) -> list[Finished]:
        """The trials in which every objective is a finite number."""
        return [trial for trial in self.trials if trial.scores is not None]

    @property
    def front(self) -> list[Finished]:
        """What nothing beats; with one objective the best alone."""
        return front(self.trials, self.goals)

    @property
    def start(self) -> Finished | None:
        """Where to start: the best, or the one of the front that gives up least."""
        return self.scored[even_handed(self.scores, self._maximize)] if self.scored else None

    @property
    def scores(self) -> list[tuple[float, ...]]:
        """Those of `scored`."""
        return [trial.scores for trial in self.trials if trial.scores is not None]

    @property
    def _maximize(self) -> list[bool]:
        return [goal.higher_is_better for goal in self.goals]


def front(trials: Sequence[Finished], goals: Sequence[Measure]) -> list[Finished]:
    """The trials that nothing beats."""
    scored = [(trial, trial.scores) for trial in trials if trial.scores is not None]
    places = pareto_front([scores for _, scores in scored], [goal.higher_is_better for goal in goals])
    return [scored[place][0] for place in places]


def compared(trials: Sequence[Finished], goals: Sequence[Measure]) -> list[Finished]:
    """What the table compares: the front, and each method's defaults."""
    best = {trial.number for trial in front(trials, goals)}
    scored = (trial for trial in trials if trial.scores is not None)
    return [trial for trial in scored if trial.number in best or trial.is_default]


def recipe_request(request: SearchRequest, trial_method: str, options: dict[str, Any], file: Path) -> RecipeRequest:
    """The recipe of the settings that a trial chose."""
    return RecipeRequest(
        request.base,
        request.branches,
        trial_method,
        file,
        settings_of(options),
        seed=request.search.seed,
        merged=request.folder / "models" / file.stem,
    )


def recipe_name(trial: Finished) -> str:
    """`trial-007-ties`."""
    return f"trial-{trial.number:03d}-{trial.method}"


def describe(trial: Finished) -> str:
    """A trial's settings in a few words; `weights 0.4/1.1` are those of the branches, in order."""
    parts = []
    for name, setting in SEARCHED.items():
        chosen = values_of(trial.options, setting)
        if values := [":".join(f"{number:g}" for number in numbers_of(value)) for value in chosen]:
            parts.append(f"{name}{'s' if len(values) > 1 else ''} {'/'.join(values)}")
    return ", ".join(parts) or "defaults"


def table(outcome: Outcome) -> Table:
    """The front, and every method's defaults to compare with."""
    best, start = {trial.number for trial in outcome.front}, outcome.start
    rows = []
    for trial in sorted(
        compared(outcome.trials, outcome.goals), key=lambda trial: (trial.number not in best, trial.number)
    ):
        mark = "★" if trial.number in best else ""
        mark += "▶" if trial is start and len(outcome.goals) > 1 else ""
        texts = mark, str(trial.number), trial.method, describe(trial), *map(number, trial.scores or ())
        rows.append(Row(list(map(Cell, texts))))
    columns = [Column(heading, is_number=heading == "Trial") for heading in ("", "Trial", "Method", "Settings")]
    return Table([*columns, *(Column(goal.name.capitalize()) for goal in outcome.goals)], rows)


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
    best = {trial.number for trial in outcome.front}
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
                **vars(trial),
                "scores": _named(outcome.goals, trial.scores),
                "stderr": _named(outcome.goals, trial.stderr),
                "seconds": round(trial.seconds, 3),
                "spread": _named(outcome.goals, trial.spread),
                "on_front": trial.number in best,
                "recipe": f"{RECIPES}/{recipe_name(trial)}.yml" if trial.number in best else None,
            }
            for trial in outcome.trials
        ],
        "start_with": outcome.start.number if outcome.start else None,
    }  # fmt: skip


def render_readme(outcome: Outcome) -> str:
    """The search's `README.md` as Markdown."""
    return render(
        "paft_plugin.search",
        "readme.md",
        outcome=outcome,
        search=outcome.request.search,
        table=as_markdown(table(outcome)),
        legend=legend(outcome),
        plot=PLOT,
        recipes=RECIPES,
        commands=[shlex.join(command) for command in merge_commands(outcome, outcome.start)] if outcome.start else [],
    )


def legend(outcome: Outcome) -> str:
    """What the marks of the table mean, and how far its numbers can be trusted."""
    many = len(outcome.goals) > 1
    marks = "★ on the front, ▶ the one that gives up least of the best of any objective" if many else "★ the best"
    drawn = max((trial.draws for trial in outcome.trials), default=1)
    draws = f"What drops by chance is a mean of {drawn} draws. " if drawn > 1 else ""
    return (
        f"{marks}; the rest: each method at its defaults. {draws}Several weights or densities: those of "
        f"{'/'.join(branch.name for branch in outcome.request.branches)}. Scores are on validation items, and the "
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
    chat = ["--apply_chat_template"] if outcome.request.apply_chat_template else []
    if search.test_tasks is not None:
        commands.append(
            ["lm_eval", "--model", "hf", "--model_args", f"pretrained={model},dtype={search.dtype},softmax_dtype=float32",
             "--include_path", str(search.test_tasks), "--tasks", named_tasks(outcome.goals), *chat,
             "--batch_size", str(search.batch_size)]
        )  # fmt: skip
    return commands


def _largest_stderr(outcome: Outcome) -> str:
    known = [error for trial in outcome.front for error in trial.stderr if error is not None]
    return f"{max(known):.2g}" if known else "unknown"


def _named(goals: Sequence[Measure], values: Sequence[float | None] | None) -> dict[str, float | None] | None:
    return None if values is None else {goal.name: value for goal, value in zip(goals, values, strict=True)}


# --- the front --------------------------------------------------------------------------------------------------------


def pareto_front(scores: Sequence[Scores], maximize: Sequence[bool]) -> list[int]:
    """The places of those that none dominates: no other is at least as good at everything and better at something.

    Of several with the same scores the first counts, so a method's default before settings that do no better. `scores` has
    a row for each candidate, of finite numbers; `maximize` says of each objective whether more is better.
    """
    gains = [tuple(value if up else -value for value, up in zip(row, maximize, strict=True)) for row in scores]
    front: list[int] = []
    for place, own in enumerate(gains):
        beaten = any(other != own and all(map(operator.ge, other, own)) for other in gains)
        if not beaten and own not in (gains[earlier] for earlier in front):
            front.append(place)
    return front


def even_handed(scores: Sequence[Scores], maximize: Sequence[bool]) -> int:
    """The place of the candidate on the front that gives up least: whose greatest loss against the best of any objective,
    as a share of that best, is smallest. Among equals the smaller sum of losses decides, then the first.
    """
    best = [(max if up else min)(column) for column, up in zip(zip(*scores, strict=True), maximize, strict=True)]

    def losses(place: int) -> list[float]:
        return [abs(value - top) / (abs(top) or 1.0) for value, top in zip(scores[place], best, strict=True)]

    return min(pareto_front(scores, maximize), key=lambda place: (max(losses(place)), sum(losses(place)), place))
