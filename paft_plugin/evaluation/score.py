"""Scores arms through lm-evaluation-harness, all in one process: importing it costs more than scoring a small model.

`python -m paft_plugin.evaluation.score --tasks DIR --output FILE ARM=PATH … [--adapter ARM BASE ADAPTER] …`
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paft_plugin.errors import PaftError, raise_if_any
from paft_plugin.evaluation.arms import MEASURES
from paft_plugin.evaluation.candidates import Candidate, check, parse_all
from paft_plugin.evaluation.items import task_problems
from paft_plugin.files import write_json

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM

SCHEMA = 1
SEED = 0
Score = dict[str, Any]


def score(
    candidates: Sequence[Candidate],
    tasks: Path,
    output: Path,
    *,
    batch_size: int = 64,
    device: str = "cpu",
    threads: int = 1,
    on_scored: Callable[[str, Score, float], None] = lambda _arm, _score, _seconds: None,
) -> dict[str, Score]:
    """Score every candidate and write `output` anew after each, so that no failure costs an arm that was finished.

    Args:
        candidates: The arms; all are checked before the first one is scored.
        tasks: Folder with lm-eval's files of the tasks that `MEASURES` names.
        output: Gets `{"schema": 1, "scores": {arm: score}}`; see `score_model` for a score.
        batch_size: Prompts at once.
        device: torch's name of it.
        threads: torch's threads; for small models one is fastest.
        on_scored: Called with arm, score and seconds after each arm.

    Raises:
        PaftError: A candidate or `tasks` can't be used, named in one line each.
    """
    raise_if_any(task_problems(tasks))
    check(candidates)

    import torch

    torch.set_num_threads(threads)
    scores: dict[str, Score] = {}
    for candidate in candidates:
        start = time.monotonic()
        scores[candidate.arm] = score_model(load(candidate, batch_size=batch_size, device=device), tasks)
        write_json(output, {"schema": SCHEMA, "scores": scores})
        on_scored(candidate.arm, scores[candidate.arm], time.monotonic() - start)
    return scores


def load(candidate: Candidate, *, batch_size: int = 64, device: str = "cpu", dtype: str = "float32") -> HFLM:
    """Load a candidate as lm-eval's model, in float32 unless another of torch's dtypes is named.

    It's loaded here and not by lm-eval, which would score a model with randomly initialised tensors, or an adapter that fits
    nowhere, as if nothing were wrong.

    Raises:
        PaftError: It can't be loaded, or not all of it; names the arm.
    """
    import torch
    from lm_eval.models.huggingface import HFLM
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = f"arm {candidate.arm}: {candidate.adapter or candidate.model}"
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            candidate.model, dtype=getattr(torch, dtype), output_loading_info=True, local_files_only=True
        )
        tokenizer = AutoTokenizer.from_pretrained(candidate.model, local_files_only=True)
        if candidate.adapter is not None:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message="(?s).*Found missing adapter keys")
                model = PeftModel.from_pretrained(model, candidate.adapter)
    except Exception as error:  # transformers and PEFT raise almost anything for a bad folder
        raise PaftError(f"{where} can't be loaded: {_one_line(error)}") from error
    if lacking := sorted(info["missing_keys"]):
        raise PaftError(
            f"{where} lacks {len(lacking)} tensors of the model that its config describes, e.g. {lacking[0]}"
        )
    if tokenizer.chat_template is None:
        raise PaftError(f"{where}: the tokenizer in {candidate.model} has no chat template")
    return HFLM(pretrained=model.to(device), tokenizer=tokenizer, batch_size=batch_size)


def score_model(model: HFLM, tasks: Path) -> Score:
    """Score one model on every measure, the same each time.

    Returns:
        For each measure its share from 0 to 1, its standard error (`…_stderr`) and its number of items (`n`), and the retained
        abilities one by one (`abilities`).
    """
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    report = simple_evaluate(
        model=model,
        tasks=[measure.task for measure in MEASURES],
        # lm-eval's own tasks, thousands of files to look through, aren't needed.
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        apply_chat_template=True,
        log_samples=True,
        random_seed=SEED,
        numpy_random_seed=SEED,
        torch_random_seed=SEED,
        fewshot_random_seed=SEED,
    )
    scores: Score = {}
    for measure in MEASURES:
        result = report["results"][measure.task]
        scores[measure.name] = float(result[f"{measure.metric},{measure.filter}"])
        stderr = result[f"{measure.metric}_stderr,{measure.filter}"]
        scores[f"{measure.name}_stderr"] = None if stderr == "N/A" else float(stderr)  # N/A: a single item
    scores["n"] = {measure.name: report["n-samples"][measure.task]["effective"] for measure in MEASURES}
    scores["abilities"] = _by_ability(report["samples"]["paft_retained"])
    return scores


def _by_ability(samples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    hits = defaultdict(list)
    for sample in samples:
        hits[sample["doc"]["task"]].append(float(sample["exact_match"]))
    return {ability: sum(values) / len(values) for ability, values in sorted(hits.items())}


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]} …"


def _say(arm: str, scores: Score, seconds: float) -> None:
    click.echo(f"{arm}: " + "  ".join(f"{m.name} {scores[m.name]:.3f}" for m in MEASURES) + f"  ({seconds:.1f} s)")


@click.command()
@click.argument("arms", nargs=-1, metavar="[ARM=PATH]...")
@click.option("--tasks", type=click.Path(path_type=Path), required=True, help="Folder of the lm-eval tasks.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="JSON file to write.")
@click.option(
    "--adapter",
    "adapters",
    type=(str, click.Path(path_type=Path), click.Path(path_type=Path)),
    multiple=True,
    metavar="ARM BASE ADAPTER",
    help="An adapter on a base model that its own config doesn't name.",
)
@click.option("--batch-size", default=64, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", default=1, show_default=True, help="torch's threads.")
def command(
    arms: tuple[str, ...],
    tasks: Path,
    output: Path,
    adapters: tuple[tuple[str, Path, Path], ...],
    batch_size: int,
    device: str,
    threads: int,
) -> None:
    """Score models, and adapters on the base model that their config names, on the tasks of a folder."""
    score(
        parse_all(arms) + [Candidate(*adapter) for adapter in adapters],
        tasks,
        output,
        batch_size=batch_size,
        device=device,
        threads=threads,
        on_scored=_say,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (2: a mistake of the user's, 130: interrupted)."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # models, tasks and items are all local files
    try:
        command.main(args=arguments, standalone_mode=False)
    except PaftError as error:
        for problem in error.problems:
            click.echo(f"Error: {problem}", err=True)
        return 2
    except click.ClickException as error:
        error.show()
        return 2
    except (KeyboardInterrupt, click.Abort):
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
