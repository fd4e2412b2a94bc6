"""`python -m paft_plugin.search.fused REQUEST`: fusions of the same branches, each merged in memory, scored and forgotten.

One base in memory takes on each fusion in turn, by the engine of `axolotl paft fuse`, and is scored as the merged model would be.
An arm that is scored already, of the same contents, is left as it is: so a stage goes on where it was killed.
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from paft_plugin.errors import collecting, print_warnings, raise_if_any, run_request
from paft_plugin.evaluation.config import read_measures
from paft_plugin.evaluation.score import (
    forget,
    model_digest,
    not_scored,
    open_scorer,
    read_asked,
    say,
    scored_on,
    write_scores,
)
from paft_plugin.files import RECIPE_FILE, fingerprint
from paft_plugin.fusion.recipe.settings import RecipeSettings, Role
from paft_plugin.reading import read_json_file

if TYPE_CHECKING:
    from paft_plugin.search.bench import FusedModel


class InMemory(BaseModel):
    """One fusion that is never written."""

    model_config = ConfigDict(frozen=True)

    arm: str
    branches: tuple[str, ...]
    """In the order in which they are merged."""
    method: str
    settings: RecipeSettings
    seed: int
    """Of a method that drops by chance."""


class BranchFolder(BaseModel):
    """A branch that is there."""

    model_config = ConfigDict(frozen=True)

    role: Role
    folder: Path


class FusedRequest(BaseModel):
    """What is asked."""

    model_config = ConfigDict(frozen=True)

    base: Path
    branches: dict[str, BranchFolder]
    fusions: tuple[InMemory, ...]
    measures: Path
    """JSON file: what is under `evaluation:`."""
    held_out: Path | None
    """Folder of the held-out rows, if there are any."""
    sft: tuple[str, ...]
    preference: tuple[str, ...]
    """What their rows are called."""
    base_scores: Path | None
    """Folder of the base's scores, which is scored first where there are rows."""
    scores: Path
    """Gets a folder for each arm."""


def score_fusions(request: FusedRequest) -> None:
    """Merge and score what is not scored yet, and write each arm's files at once.

    Raises:
        PaftError: Branches that cannot be merged, once all others are scored; anything else before the base is loaded.
    """
    shared = _contents(request)
    wanted = {fusion.arm: fingerprint([*shared, fusion.model_dump_json()]) for fusion in request.fusions}
    waiting = not_scored(request.scores, wanted)
    missing = [fusion for fusion in request.fusions if fusion.arm in waiting]
    if not missing:
        return
    from paft_plugin.machine import reuse_freed_memory
    from paft_plugin.search.bench import Bench

    config = read_measures(request.measures)
    asked, lines = read_asked(request.held_out, request.sft, request.preference, config, request.base_scores)
    print_warnings(lines)
    reuse_freed_memory()
    scorer, device, dtype = open_scorer(config, asked)
    forget(request.scores, [fusion.arm for fusion in missing])
    bench = Bench.open(request.base, scorer, device, dtype)
    print_warnings(bench.notes)
    problems: list[str] = []
    for fusion in missing:
        start = time.monotonic()
        with collecting(problems):
            _become(bench.model, request, fusion)
            found, items = bench.score()
            found = found.model_copy(update={"seconds": round(time.monotonic() - start, 3)})
            write_scores(request.scores, fusion.arm, scorer.all_measures, found, items, wanted[fusion.arm])
            say(fusion.arm, found)
    raise_if_any(problems)


def _become(model: FusedModel, request: FusedRequest, fusion: InMemory) -> None:
    """Write the recipe beside where the scores go, and have the model take on what it merges."""
    from paft_plugin.fusion.recipe.render import RecipeBranch
    from paft_plugin.fusion.recipe.write import RecipeRequest, write_recipe

    branches = [(name, request.branches[name]) for name in fusion.branches]
    recipe = RecipeRequest(
        request.base,
        tuple(RecipeBranch(name, branch.role, branch.folder) for name, branch in branches),
        fusion.method,
        request.scores / fusion.arm / RECIPE_FILE,
        fusion.settings,
        fusion.seed,
        merged=request.scores.parent / "models" / fusion.arm,
    )
    write_recipe(recipe)
    model.become(recipe.output, fusion.seed)


def _contents(request: FusedRequest) -> list[str]:
    """Fingerprints of what all fusions are made of and scored on."""
    from paft_plugin.deltas.delta import open_delta

    deltas = {name: open_delta(request.base, branch.folder) for name, branch in request.branches.items()}
    return [
        *scored_on(
            read_measures(request.measures), request.held_out, (request.sft, request.preference), request.base_scores
        ),
        model_digest(request.base),
        *(f"{name} {request.branches[name].role} {delta.branch_fingerprint()}" for name, delta in deltas.items()),
    ]


def work(file: Path) -> None:
    """Score the fusions that a request asks for."""
    logging.disable(logging.INFO)
    score_fusions(FusedRequest.model_validate(read_json_file(file, "Run `axolotl paft run` again.")))


if __name__ == "__main__":
    sys.exit(run_request(sys.argv[1:], "paft_plugin.search.fused", work))
