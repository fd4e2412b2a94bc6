"""Scores arms through lm-evaluation-harness, all in one process: importing it costs more than scoring a small model.

`python -m paft_plugin.evaluation.score --measures FILE --output FILE ARM=PATH … [--adapter ARM BASE ADAPTER] …`
"""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from paft_plugin.errors import BAD_INPUT, INTERRUPTED, PaftError, collecting, raise_if_any
from paft_plugin.evaluation.candidates import Candidate, load, parse_all, problems_of
from paft_plugin.evaluation.config import EvaluationConfig, read_measures
from paft_plugin.evaluation.results import ArmScore, Measure, ScoresFile
from paft_plugin.evaluation.tasks import OpenTask, open_measures
from paft_plugin.formats import number

if TYPE_CHECKING:
    from paft_plugin.evaluation.scorer import Scorer


def score(
    candidates: Sequence[Candidate],
    config: EvaluationConfig,
    output: Path,
    on_scored: Callable[[str, ArmScore], None] = lambda _arm, _score: None,
) -> dict[str, ArmScore]:
    """Score every candidate and write `output` anew after each, so that no failure costs an arm that was finished.

    `output` is a `results.ScoresFile`; `on_scored` is called with arm and score after each arm.

    Raises:
        PaftError: A candidate, a task or the device can't be used, named in one line each, before anything is scored.
    """
    from paft_plugin.machine import usable_device

    problems = problems_of(candidates)
    measures: list[Measure] = []
    tasks: dict[str, OpenTask] = {}
    device = config.device
    with collecting(problems):
        device = usable_device(config.device, "evaluation.device")
    with collecting(problems):
        measures, tasks = open_measures(config.measures, config.tasks, trusted=config.trust_task_code)
    raise_if_any(problems)

    config = config.model_copy(update={"device": device})
    scores: dict[str, ArmScore] = {}
    for candidate in candidates:
        scores[candidate.arm] = _score_one(candidate, config, measures, tasks)
        ScoresFile(measures=tuple(measures), scores=scores).write(output)
        on_scored(candidate.arm, scores[candidate.arm])
    return scores


def _score_one(
    candidate: Candidate, config: EvaluationConfig, measures: Sequence[Measure], tasks: Mapping[str, OpenTask]
) -> ArmScore:
    import torch

    from paft_plugin.evaluation.scorer import Scorer

    start, chat = time.monotonic(), config.apply_chat_template
    batch_size, device, dtype = config.batch_size, config.device, config.dtype
    model = load(candidate, batch_size=batch_size, device=device, dtype=dtype, chat_template=chat)
    score = score_model(Scorer(model, tasks, config.limit, apply_chat_template=chat), measures)
    del model
    gc.collect()  # the next one may need the memory
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return score.model_copy(update={"seconds": round(time.monotonic() - start, 3)})


def score_model(scorer: Scorer, measures: Sequence[Measure], where: str = "evaluation.measures") -> ArmScore:
    """What the scorer's model comes to on the measures (the key `where` names them); a number that is not finite is left out.

    Raises:
        PaftError: lm-eval reports a measure by another name.
    """
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
    return ArmScore(
        scores={name: value for name, value in values.items() if math.isfinite(value)},
        stderr={name: error for name, error in errors.items() if error is not None and math.isfinite(error)},
        n={measure.name: scorer.items(measure.task) for measure in measures},
    )


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
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="JSON file to write.")
@click.option(
    "--adapter",
    "adapters",
    type=(str, click.Path(path_type=Path), click.Path(path_type=Path)),
    multiple=True,
    metavar="ARM BASE ADAPTER",
    help="An adapter on a base model that its own config doesn't name.",
)
def command(arms: tuple[str, ...], measures: Path, output: Path, adapters: tuple[tuple[str, Path, Path], ...]) -> None:
    """Score models, and adapters on the base model that their config names, on the measures of a file."""
    config = read_measures(measures)
    score(parse_all(arms) + [Candidate(*adapter) for adapter in adapters], config, output, on_scored=_say)


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
