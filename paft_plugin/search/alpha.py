"""`python -m paft_plugin.search.alpha REQUEST`: the way from the SFT branch to the preference branch, scored on validation items.

No merged model is written: one base in memory takes on each point in turn, by the engine that merges the point which is taken.
"""

from __future__ import annotations

import logging
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from paft_plugin.errors import PaftError, print_warnings, run_request
from paft_plugin.evaluation.config import read_measures
from paft_plugin.evaluation.held_out_scores import HeldOut, read_held_out
from paft_plugin.evaluation.results import Measure, held_out_goals
from paft_plugin.files import RECIPE_FILE, write_text
from paft_plugin.formats import number
from paft_plugin.fusion.recipe.render import interpolation_recipe
from paft_plugin.reading import read_json_file
from paft_plugin.search.alpha_curve import (
    ALPHA_FILE,
    AlphaCurve,
    AlphaPoint,
    choose_point,
    grid,
    mean_intervals,
    usable_goals,
)

if TYPE_CHECKING:
    from paft_plugin.evaluation.tasks import OpenTask
    from paft_plugin.search.bench import Bench


class AlphaRequest(BaseModel):
    """What is asked."""

    model_config = ConfigDict(frozen=True)

    arm: str
    base: Path
    branches: tuple[Path, Path]
    """Folders of the SFT branch and of the preference branch."""
    names: tuple[str, str]
    """What their held-out rows are called."""
    points: int
    measures: Path
    """JSON file: what is under `evaluation:`."""
    held_out: Path | None
    """Folder of the held-out rows, if there are any."""
    skills: tuple[str, ...]
    preferences: tuple[str, ...]
    """The goals, as far as the user has named them."""
    out_dtype: str
    seed: int
    folder: Path
    """Gets the curve, and the recipe of the point that is taken."""


def find_alpha(request: AlphaRequest) -> AlphaCurve:
    """Score every point, choose one, and write the curve and its recipe.

    Raises:
        PaftError: The branches cannot be merged, or there are no validation items.
    """
    bench, ends, notes = _open(request)
    base, items = _score(bench, -1.0)
    print(f"base: {_shown(base)}")
    points = []
    recipe = request.folder / RECIPE_FILE
    for alpha in grid(request.points):
        write_text(recipe, interpolation_recipe(request.base, request.branches, alpha, request.out_dtype))
        bench.model.become(recipe, request.seed)
        points.append(_score(bench, alpha)[0])
        print(f"alpha {alpha:g}: {_shown(points[-1])}", flush=True)
    measures = {measure.name: measure for measure in bench.scorer.all_measures}
    goals, more = usable_goals(points, base.scores, ends, measures)
    chosen = choose_point(points, base.scores, goals)
    write_text(recipe, interpolation_recipe(request.base, request.branches, chosen, request.out_dtype))
    curve = AlphaCurve(
        arm=request.arm,
        measures=tuple(measures.values()),
        goals=goals,
        base=base.scores,
        points=tuple(points),
        chosen=chosen,
        items=items,
        notes=(*notes, *more),
    )
    curve.write(request.folder / ALPHA_FILE)
    return curve


def _shown(point: AlphaPoint) -> str:
    return "  ".join(f"{name} {number(value)}" for name, value in point.scores.items())


def _open(request: AlphaRequest) -> tuple[Bench, Mapping[str, float], list[str]]:
    """The bench of the validation items; goal → where its branch lies; and what is to be said."""
    from paft_plugin.evaluation.score import ArmScorer, RowsOfSplit
    from paft_plugin.machine import usable_device
    from paft_plugin.search.bench import Bench
    from paft_plugin.search.validation import open_goals

    config = read_measures(request.measures)
    held_out, notes = _validation_rows(request)
    of_tasks: list[Measure] = []
    tasks: dict[str, OpenTask] = {}
    for name, measure in config.by_task.items():
        try:
            found, opened = open_goals({name: measure}, config.tasks, None, config.trust_task_code)
        except PaftError as error:
            notes += [f"{name}: not on the way, because {error.problems[0]}"]
        else:
            of_tasks, tasks = [*of_tasks, *found], {**tasks, **opened}
    ends = _ends(request, held_out, of_tasks)
    device = usable_device(config.device, "evaluation.device")
    rows = {"": RowsOfSplit(held_out)} if held_out else {}
    bench = Bench.open(request.base, ArmScorer(config, of_tasks, tasks, rows), device, str(config.dtype))
    return bench, ends, [*notes, *bench.notes]


def _score(bench: Bench, alpha: float) -> tuple[AlphaPoint, dict[str, int]]:
    """What the model comes to as it is now, and on how many items; the first one scored is the base."""
    found, items = bench.score()
    values: dict[str, list[float]] = defaultdict(list)
    sure: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for item in items:
        values[item.measure].append(item.value)
        if item.probability is not None:
            sure[item.measure].append((item.probability, item.value))
    known = {measure.name for measure in bench.scorer.all_measures}
    point = AlphaPoint(
        alpha=alpha,
        scores={name: value for name, value in found.scores.items() if name in known},
        intervals={name: interval for name, interval in mean_intervals(values).items() if name in known},
        calibration={name: _missed(answers) for name, answers in sure.items()},
    )
    return point, dict(found.n)


def _missed(answers: Sequence[tuple[float, float]]) -> float:
    """By how much the probabilities of answers miss what is right."""
    import numpy as np

    from paft_plugin.evaluation.statistics import calibration_error

    probability, right = np.array(answers).T
    return calibration_error(probability, right)


def _validation_rows(request: AlphaRequest) -> tuple[HeldOut, list[str]]:
    if request.held_out is None:
        return HeldOut(retained=()), []
    sft, preference = request.names
    return read_held_out(request.held_out, [sft], [preference], "validation", own_answers=False)


def _ends(request: AlphaRequest, held_out: HeldOut, of_tasks: list[Measure]) -> dict[str, float]:
    """The measures that a point is chosen by, and where the branches lie that were trained for them.

    Those that the user has named, as far as they have validation items; else those of held-out rows.
    """
    measures = [*held_out.measures(), *of_tasks]
    names = {measure.name for measure in measures}
    skills = [name for name in request.skills if name in names] or held_out_goals(measures, "match", "nll")
    preferences = [name for name in request.preferences if name in names] or held_out_goals(measures, "gain")
    if not names:
        raise PaftError(
            f"{request.arm}: there are no validation items to choose a point by: hold rows out (evaluation.held_out), or name "
            "tasks that have a validation_split."
        )
    return {**dict.fromkeys(skills, 0.0), **dict.fromkeys(preferences, 1.0)}


def work(file: Path) -> None:
    """Choose the point that a request asks for."""
    logging.disable(logging.INFO)
    curve = find_alpha(AlphaRequest.model_validate(read_json_file(file, "Run `axolotl paft run` again.")))
    print_warnings(curve.notes)
    print(f"Took alpha {curve.chosen:g}.")


if __name__ == "__main__":
    sys.exit(run_request(sys.argv[1:], "paft_plugin.search.alpha", work))
