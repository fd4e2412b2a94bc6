"""Scores arms on held-out rows and through lm-evaluation-harness, all in one process: starting it costs more than a small model.

`python -m paft_plugin.evaluation.score --measures FILE --output-dir DIR ARM=PATH … [--adapter ARM BASE ADAPTER] …
[--held-out DIR --sft BRANCH … --preference BRANCH … [--base-scores DIR]]`
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paft_plugin.errors import BAD_INPUT, INTERRUPTED, PaftError, collecting, raise_if_any
from paft_plugin.evaluation.candidates import Candidate, Loader, as_lm_eval, dtype_name, parse_all, problems_of
from paft_plugin.evaluation.config import EvaluationConfig, read_measures
from paft_plugin.evaluation.held_out_scores import (
    KEPT_FILE,
    HeldOut,
    HeldOutScorer,
    Kept,
    KeptFile,
    read_held_out,
    summarised,
)
from paft_plugin.evaluation.items import ITEMS_FILE, ItemScore, write_items
from paft_plugin.evaluation.results import ArmScore, Measure, ScoresFile
from paft_plugin.evaluation.tasks import OpenTask, open_measures
from paft_plugin.formats import number

if TYPE_CHECKING:
    from paft_plugin.evaluation.scorer import Scorer

SCORES_FILE = "scores.json"


@dataclass(frozen=True)
class Asked:
    """What candidates are scored on, beside lm-eval's tasks."""

    held_out: HeldOut = field(default_factory=HeldOut)
    base_scores: Path | None = None
    """Folder of the base's scores; None: the first candidate is the base that the others are compared with."""


def score(
    candidates: Sequence[Candidate],
    config: EvaluationConfig,
    output_dir: Path,
    asked: Asked | None = None,
    on_scored: Callable[[str, ArmScore], None] = lambda _arm, _score: None,
) -> dict[str, ArmScore]:
    """Score every candidate, and write `ARM/scores.json` and `ARM/items.jsonl` of each at once: no failure costs a finished arm.

    `on_scored` is called with arm and score after each arm.

    Raises:
        PaftError: A candidate, a task or the device can't be used, named in one line each, before anything is scored.
    """
    from paft_plugin.machine import usable_device

    asked = asked or Asked()
    problems = problems_of(candidates)
    measures: list[Measure] = []
    tasks: dict[str, OpenTask] = {}
    kept: Kept | None = None
    device, dtype = config.device, str(config.dtype)
    with collecting(problems):
        device = usable_device(config.device, "evaluation.device")
    with collecting(problems):
        if config.by_task:
            measures, tasks = open_measures(config.by_task, config.tasks, trusted=config.trust_task_code)
        elif not asked.held_out:
            problems.append(
                "nothing to score on: there are neither tasks nor held-out rows. Name tasks, or hold rows out."
            )
    with collecting(problems):
        if asked.base_scores is not None:
            dtype = dtype if dtype != "auto" else KeptFile.read(asked.base_scores / KEPT_FILE).dtype
            kept = Kept.read(asked.base_scores) if asked.held_out else None
    raise_if_any(problems)

    bench = _Bench(
        config, measures, tasks, asked.held_out, Loader(device, dtype, bool(tasks) and config.apply_chat_template)
    )
    scores: dict[str, ArmScore] = {}
    for candidate in candidates:
        found, items, kept = bench.score(candidate, kept, output_dir / candidate.arm)
        scores[candidate.arm] = found
        write_items(output_dir / candidate.arm / ITEMS_FILE, items)
        ScoresFile(measures=tuple(bench.all_measures), scores={candidate.arm: found}).write(
            output_dir / candidate.arm / SCORES_FILE
        )
        on_scored(candidate.arm, found)
    return scores


@dataclass(frozen=True)
class _Bench:
    """What all candidates are scored on, and what loads them."""

    config: EvaluationConfig
    measures: Sequence[Measure]
    """Of lm-eval's tasks."""
    tasks: Mapping[str, OpenTask]
    held_out: HeldOut
    loader: Loader

    @property
    def all_measures(self) -> list[Measure]:
        """Those of held-out rows, and lm-eval's; a name that the user gave means what the user meant."""
        taken = {measure.name for measure in self.measures}
        return [*(one for one in self.held_out.measures() if one.name not in taken), *self.measures]

    def score(
        self, candidate: Candidate, base: Kept | None, folder: Path
    ) -> tuple[ArmScore, list[ItemScore], Kept | None]:
        """A candidate's scores and items, and the base that it was compared with: itself if there is none yet."""
        start = time.monotonic()
        model, tokenizer = self.loader.load(candidate)
        items: list[ItemScore] = []
        if self.held_out:
            items, base = self._on_rows(model, tokenizer, base, folder)
        taken = {measure.name for measure in self.measures}
        found = summarised(item for item in items if item.measure not in taken)
        items = [item for item in items if item.measure in found.scores]
        if self.tasks:
            own, more = self._on_tasks(model, tokenizer)
            found, items = found.with_more(own), [*items, *more]
        return found.model_copy(update={"seconds": round(time.monotonic() - start, 3)}), items, base

    def _on_rows(self, model: Any, tokenizer: Any, base: Kept | None, folder: Path) -> tuple[list[ItemScore], Kept]:
        from paft_plugin.evaluation.likelihood import AnswerModel

        asked = AnswerModel(model, self.config.batch_size)
        rows, lines = self.held_out.readable(asked.context)
        for line in lines:
            click.echo(f"Warning: {line}", err=True)
        scorer = HeldOutScorer(asked, tokenizer, rows, keep_texts=self.config.keep_texts)
        if base is not None:
            return scorer.score(base), base
        items, base = scorer.score_base()
        base.write(folder, dtype_name(model))
        return items, base

    def _on_tasks(self, model: Any, tokenizer: Any) -> tuple[ArmScore, list[ItemScore]]:
        from paft_plugin.evaluation.scorer import Scorer

        config = self.config
        lm = as_lm_eval(model, tokenizer, config.batch_size)
        scorer = Scorer(lm, self.tasks, config.limit, apply_chat_template=config.apply_chat_template)
        return score_with_items(scorer, self.measures, keep_texts=config.keep_texts)


def score_model(scorer: Scorer, measures: Sequence[Measure], where: str = "evaluation.measures") -> ArmScore:
    """What the scorer's model comes to on the measures (the key `where` names them); a number that is not finite is left out.

    Raises:
        PaftError: lm-eval reports a measure by another name.
    """
    return score_with_items(scorer, measures, where)[0]


def score_with_items(
    scorer: Scorer, measures: Sequence[Measure], where: str = "evaluation.measures", *, keep_texts: bool = False
) -> tuple[ArmScore, list[ItemScore]]:
    """`score_model`, and what each item of those measures came to that are means over items."""
    found = scorer.score()
    raise_if_any(
        [
            f"{where}.{measure.task}: lm-eval reports no {measure.key}, but {', '.join(found[measure.task].values)}."
            for measure in measures
            if measure.key not in found[measure.task].values
        ]
    )
    values = {measure.name: found[measure.task].values[measure.key] for measure in measures}
    errors = {measure.name: found[measure.task].stderr.get(measure.key) for measure in measures}
    score = ArmScore(
        scores={name: value for name, value in values.items() if math.isfinite(value)},
        stderr={name: error for name, error in errors.items() if error is not None and math.isfinite(error)},
        n={measure.name: scorer.items(measure.task) for measure in measures},
    )
    items = [
        item
        for measure in measures
        if measure.name in score.scores
        for item in scorer.item_scores(measure, found[measure.task], keep_texts=keep_texts)
    ]
    return score, items


def _say(arm: str, score: ArmScore) -> None:
    shown = "  ".join(f"{name} {number(score.scores[name])}" for name in score.n if name in score.scores)
    click.echo(f"{arm}: {shown}  ({score.seconds:.1f} s)")
    for name in score.n:
        if name not in score.scores:
            click.echo(f"Warning: arm {arm}: {name} is no finite number, so it is left out.", err=True)


@click.command()
@click.argument("arms", nargs=-1, metavar="[ARM=PATH]...")
@click.option(
    "--measures",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="JSON file: what is under `evaluation:` in paft.yml.",
)
@click.option(
    "--output-dir",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Gets ARM/scores.json and ARM/items.jsonl of each arm.",
)
@click.option(
    "--adapter",
    "adapters",
    type=(str, click.Path(path_type=Path), click.Path(path_type=Path)),
    multiple=True,
    metavar="ARM BASE ADAPTER",
    help="An adapter on a base model that its own config doesn't name.",
)
@click.option(
    "--held-out",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder of held-out rows: BRANCH.jsonl, and retained.jsonl if there is one.",
)
@click.option("--sft", multiple=True, metavar="BRANCH", help="An SFT branch that rows are held out of.")
@click.option("--preference", multiple=True, metavar="BRANCH", help="A preference branch that rows are held out of.")
@click.option(
    "--base-scores",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the base's scores, which is scored first. Left out: the first arm is the base.",
)
def command(
    arms: tuple[str, ...],
    measures: Path,
    output_dir: Path,
    adapters: tuple[tuple[str, Path, Path], ...],
    held_out: Path | None,
    sft: tuple[str, ...],
    preference: tuple[str, ...],
    base_scores: Path | None,
) -> None:
    """Score models, and adapters on the base model that their config names, on held-out rows and on the measures of a file."""
    config = read_measures(measures)
    rows = HeldOut()
    if held_out is not None:
        rows, lines = read_held_out(held_out, sft, preference, own_answers=not isinstance(config.retained, list))
        for line in lines:
            click.echo(f"Warning: {line}", err=True)
    candidates = parse_all(arms) + [Candidate(*adapter) for adapter in adapters]
    score(candidates, config, output_dir, Asked(rows, base_scores), on_scored=_say)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (2: a mistake of the user's, 130: interrupted)."""
    try:
        command.main(args=arguments, standalone_mode=False)
    except PaftError as error:
        for problem in error.problems:
            click.echo(f"Error: {problem}", err=True)
        return BAD_INPUT
    except click.ClickException as error:
        error.show()
        return BAD_INPUT
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
