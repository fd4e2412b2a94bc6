"""Scores arms on held-out rows and through lm-evaluation-harness, all in one process: starting it costs more than a small model.

An arm whose scores are there, of the same contents, on the same items, by the same libraries, is left as it is.

`python -m paft_plugin.evaluation.score --measures FILE --output-dir DIR ARM=PATH … [--adapter ARM BASE ADAPTER] …
[--held-out DIR --sft BRANCH … --preference BRANCH … [--base-scores DIR]]`
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paft_plugin import __version__
from paft_plugin.errors import BAD_INPUT, INTERRUPTED, PaftError, collecting, print_warnings, raise_if_any
from paft_plugin.evaluation.candidates import Candidate, Loader, as_lm_eval, dtype_name, parse_all, problems_of
from paft_plugin.evaluation.config import EvaluationConfig, read_measures
from paft_plugin.evaluation.held_out_scores import (
    KEPT_FILE,
    OUTPUT_FILE,
    RETAINED_FILE,
    HeldOut,
    HeldOutScorer,
    Kept,
    KeptFile,
    read_held_out,
    summarised,
)
from paft_plugin.evaluation.items import ITEMS_FILE, ItemScore, write_items
from paft_plugin.evaluation.results import SCORES_FILE, VALIDATION, ArmScore, Measure, ScoresFile
from paft_plugin.evaluation.task_code import task_inputs
from paft_plugin.evaluation.tasks import OpenTask, open_measures
from paft_plugin.files import file_digest, fingerprint
from paft_plugin.formats import number

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from paft_plugin.evaluation.scorer import Scorer

_KEPT = (KEPT_FILE, OUTPUT_FILE, RETAINED_FILE)
"""What of the base's scores other arms are compared with."""
_LIBRARIES = ("torch", "transformers", "tokenizers", "peft", "lm-eval", "datasets", "mergekit")
_OF_A_MODEL = {".json", ".safetensors", ".jinja", ".model", ".txt", ".tiktoken", ".bpe", ".spm"}
"""Endings of its weights, its configs and its tokenizer."""


@dataclass(frozen=True)
class Asked:
    """What candidates are scored on, beside lm-eval's tasks."""

    held_out: HeldOut = field(default_factory=HeldOut)
    validation: HeldOut = field(default_factory=HeldOut)
    """Rows on which something may be chosen, if they are scored, too."""
    base_scores: Path | None = None
    """Folder of the base's scores; None: the first candidate is the base that the others are compared with."""
    folder: Path | None = None
    """Where the held-out rows lie."""
    branches: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    """The SFT and the preference branches whose rows they are."""


def read_asked(
    folder: Path | None,
    sft: Sequence[str],
    preference: Sequence[str],
    config: EvaluationConfig,
    base_scores: Path | None,
) -> tuple[Asked, list[str]]:
    """The held-out rows in a folder of these branches, and a line on each branch that has none.

    Raises:
        PaftError: A file cannot be read; all that is wrong.
    """
    if folder is None:
        return Asked(base_scores=base_scores), []
    own_answers = not isinstance(config.retained, list)
    rows, lines = read_held_out(folder, sft, preference, own_answers=own_answers)
    validation = HeldOut()
    if config.validation:
        own_answers = own_answers and rows.retained is None
        validation, more = read_held_out(folder, sft, preference, "validation", own_answers=own_answers)
        lines += more
    return Asked(rows, validation, base_scores, folder, (tuple(sft), tuple(preference))), lines


def score(
    candidates: Sequence[Candidate],
    config: EvaluationConfig,
    output_dir: Path,
    asked: Asked | None = None,
    on_scored: Callable[[str, ArmScore], None] = lambda _arm, _score: None,
) -> dict[str, ArmScore]:
    """Score every candidate, and write `ARM/scores.json` and `ARM/items.jsonl` of each at once: no failure costs a finished arm.

    Those whose scores of the same contents are there already are left as they are, and are not in what is returned; a base
    that others are compared with is scored anew. `on_scored` is called with arm and score after each arm.

    Raises:
        PaftError: A candidate, a task or the device can't be used, named in one line each, before anything is scored.
    """
    asked = asked or Asked()
    problems = problems_of(candidates)
    requests = {} if problems else _requests(candidates, config, asked)
    waiting = not_scored(output_dir, {one.arm: requests.get(one.arm, "") for one in candidates})
    missing = [one for one in candidates if one.arm in waiting]
    if candidates and not missing:
        return {}
    with collecting(problems):
        scorer, device, dtype = open_scorer(config, asked)
    raise_if_any(problems)
    forget(output_dir, [one.arm for one in missing])
    loader = Loader(device, dtype, scorer.asks_in_chat)
    scores: dict[str, ArmScore] = {}
    for candidate in missing:
        start = time.monotonic()
        model, tokenizer = loader.load(candidate)
        print_warnings(scorer.take(model, tokenizer))
        found, items = scorer.score(base_folder=output_dir / candidate.arm)
        found = found.model_copy(update={"seconds": round(time.monotonic() - start, 3)})
        write_scores(output_dir, candidate.arm, scorer.all_measures, found, items, requests.get(candidate.arm, ""))
        scores[candidate.arm] = found
        on_scored(candidate.arm, found)
    return scores


def _requests(candidates: Sequence[Candidate], config: EvaluationConfig, asked: Asked) -> dict[str, str]:
    """Arm → the fingerprint of what it is and is scored on; none where one of the candidates is the others' base."""
    if asked.base_scores is None and (asked.held_out or asked.validation):
        return {}
    try:
        shared = scored_on(config, asked.folder, asked.branches, asked.base_scores)
    except PaftError:
        return {}  # whoever opens the scorer says so
    parts = {one.arm: [folder for folder in (one.model, one.adapter) if folder is not None] for one in candidates}
    digests = {folder: model_digest(folder) for folder in {folder for folders in parts.values() for folder in folders}}
    return {arm: fingerprint([*shared, *(digests[each] for each in folders)]) for arm, folders in parts.items()}


def scored_on(
    config: EvaluationConfig, held_out: Path | None, branches: Sequence[Sequence[str]], base_scores: Path | None
) -> list[str]:
    """Fingerprints of all that an arm's scores depend on, but for the arm: settings, items, the base's scores, libraries, device.

    Data sets that lm-eval's own tasks take from a hub are taken for the same. `branches` are those with held-out rows.

    Raises:
        PaftError: The device is not to be had.
    """
    from paft_plugin.machine import installed, usable_device

    files = [] if held_out is None else sorted(held_out.glob("*.jsonl"))
    if base_scores is not None:
        files += [file for file in sorted(base_scores.rglob("*")) if file.name in _KEPT]
    for path in () if config.tasks is None else task_inputs(config.tasks):
        files += sorted(path.rglob("*")) if path.is_dir() else [path]
    files = [file for file in files if file.is_file() and "__pycache__" not in file.parts]
    return [
        __version__,
        usable_device(config.device, "evaluation.device"),
        *(word for item in installed(_LIBRARIES).items() for word in item),
        *("branches", *branches[0], "and", *branches[1]),
        config.model_dump_json(),
        *(word for file in files for word in (file.name, file_digest(file))),
    ]


def model_digest(folder: Path) -> str:
    """Of a model's or an adapter's weights, configs and tokenizer; not of the checkpoints below it."""
    files = [*folder.iterdir(), *folder.glob("additional_chat_templates/*")]
    wanted = sorted(file for file in files if file.suffix in _OF_A_MODEL and file.is_file())
    return fingerprint(word for file in wanted for word in (file.name, file_digest(file)))


def not_scored(scores: Path, requests: Mapping[str, str]) -> list[str]:
    """The arms (arm → its request) of which no scores of the same contents are there; says how many others there are."""
    missing = []
    for arm, request in requests.items():
        found = ScoresFile.read_or_nothing(scores / arm / SCORES_FILE)
        if found is None or not request == found.request != "" or not (scores / arm / ITEMS_FILE).is_file():
            missing.append(arm)
    if kept := len(requests) - len(missing):
        click.echo(f"{kept} of {len(requests)} are scored already.")
    return missing


def forget(scores: Path, arms: Iterable[str]) -> None:
    """Remove what was scored of arms that are about to be scored: if that fails, nobody takes the old for the new."""
    for arm in arms:
        for name in (SCORES_FILE, ITEMS_FILE, *_KEPT):
            (scores / arm / name).unlink(missing_ok=True)
            (scores / arm / VALIDATION.strip("_") / name).unlink(missing_ok=True)


def write_scores(
    output_dir: Path,
    arm: str,
    measures: Sequence[Measure],
    score: ArmScore,
    items: Iterable[ItemScore],
    request: str = "",
) -> None:
    """Write what an arm came to; the scores last, so that where they are, all is."""
    write_items(output_dir / arm / ITEMS_FILE, items)
    ScoresFile(measures=tuple(measures), scores={arm: score}, request=request).write(output_dir / arm / SCORES_FILE)


def open_scorer(config: EvaluationConfig, asked: Asked) -> tuple[ArmScorer, str, str]:
    """What scores arms, and the device and the dtype in which it is to be done: the base's own, where that was scored before.

    Raises:
        PaftError: A task, the device or the base's scores can't be used; all that is wrong.
    """
    from paft_plugin.machine import usable_device

    problems: list[str] = []
    measures: list[Measure] = []
    tasks: dict[str, OpenTask] = {}
    parts = {"": RowsOfSplit(asked.held_out), VALIDATION: RowsOfSplit(asked.validation)}
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
            for ending, part in parts.items():
                part.base = Kept.read(asked.base_scores / ending.strip("_")) if part.rows else None
    raise_if_any(problems)
    return (
        ArmScorer(config, measures, tasks, {ending: part for ending, part in parts.items() if part.rows}),
        device,
        dtype,
    )


@dataclass
class RowsOfSplit:
    """The held-out rows of one split, what the base came to on them, and what scores a model on them."""

    rows: HeldOut
    base: Kept | None = None
    """What arms are compared with; None: the first that is scored is the base."""
    scorer: HeldOutScorer | None = None
    """Once there is a model."""

    def score(self) -> list[ItemScore]:
        """The items of the model as it is now."""
        assert self.scorer is not None
        if self.base is not None:
            return self.scorer.score(self.base)
        items, self.base = self.scorer.score_base()
        return items


@dataclass
class ArmScorer:
    """Scores one arm after another on held-out rows and lm-eval's tasks: whatever the weights of a model are by then.

    What does not depend on weights, such as the tasks' requests, is made once for all models with the same tokenizer.
    """

    config: EvaluationConfig
    measures: Sequence[Measure]
    """Of lm-eval's tasks."""
    opened: Mapping[str, OpenTask]
    """lm-eval's tasks, by name."""
    held_out: Mapping[str, RowsOfSplit]
    """How the names of measures end → the rows; none where there are no rows."""
    tasks: Scorer | None = field(default=None, init=False)
    """Of lm-eval's tasks, once there is a model."""
    _tokenizer: Any = field(default=None, init=False)
    _dtype: str = field(default="", init=False)

    @property
    def asks_in_chat(self) -> bool:
        """Whether the tokenizer must have a chat template."""
        return bool(self.opened) and self.config.apply_chat_template

    @property
    def all_measures(self) -> list[Measure]:
        """Those of held-out rows, and lm-eval's; a name that the user gave means what the user meant."""
        taken = {measure.name for measure in self.measures}
        of_rows = [
            replace(one, name=f"{one.name}{ending}")
            for ending, part in self.held_out.items()
            for one in part.rows.measures()
        ]
        return [*(one for one in of_rows if one.name not in taken), *self.measures]

    def take(self, model: Any, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """Score this model from now on; returns a line on each branch with rows that are too long for it.

        Raises:
            PaftError: It can't be asked, or not in its chat template.
        """
        from paft_plugin.evaluation.likelihood import AnswerModel

        lines: list[str] = []
        self._dtype = dtype_name(model)
        for part in self.held_out.values():
            asked = AnswerModel(model, self.config.batch_size)
            rows, more = part.rows.readable(asked.context)
            part.scorer = HeldOutScorer(asked, tokenizer, rows, keep_texts=self.config.keep_texts)
            lines += more
        if self.opened:
            self._take_tasks(model, tokenizer)
        return lines

    def _take_tasks(self, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        from paft_plugin.evaluation.scorer import Scorer, share_contexts, tokenise_once

        lm = as_lm_eval(model, tokenizer, self.config.batch_size)
        tokenise_once(lm)
        share_contexts(lm)
        if self.tasks is not None and tokenizer is self._tokenizer:
            self.tasks.take(lm)
            return
        config = self.config
        self.tasks = Scorer(lm, self.opened, config.limit, apply_chat_template=config.apply_chat_template)
        self._tokenizer = tokenizer

    def score(
        self, where: str = "evaluation.measures", base_folder: Path | None = None
    ) -> tuple[ArmScore, list[ItemScore]]:
        """What the model comes to as it is now, and on which item; the key `where` names the measures in messages.

        `base_folder` gets what others are compared with, if this is the base.
        """
        items: list[ItemScore] = []
        for ending, part in self.held_out.items():
            is_base = part.base is None
            items += [item.model_copy(update={"measure": f"{item.measure}{ending}"}) for item in part.score()]
            if is_base and part.base is not None and base_folder is not None:
                part.base.write(base_folder / ending.strip("_"), self._dtype)
        taken = {measure.name for measure in self.measures}
        found = summarised(item for item in items if item.measure not in taken)
        items = [item for item in items if item.measure in found.scores]
        if self.tasks is not None:
            own, more = score_with_items(self.tasks, self.measures, where, keep_texts=self.config.keep_texts)
            found, items = found.with_more(own), [*items, *more]
        return found, items


def score_with_items(
    scorer: Scorer, measures: Sequence[Measure], where: str = "evaluation.measures", *, keep_texts: bool = False
) -> tuple[ArmScore, list[ItemScore]]:
    """What the scorer's model comes to on the measures, and what each item of those that are means over items came to.

    A number that is not finite is left out; the key `where` names the measures in messages.

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


def say(arm: str, score: ArmScore) -> None:
    """Print what an arm came to."""
    shown = "  ".join(f"{name} {number(score.scores[name])}" for name in score.n if name in score.scores)
    click.echo(f"{arm}: {shown}  ({score.seconds:.1f} s)")
    left_out = [name for name in score.n if name not in score.scores]
    print_warnings(f"arm {arm}: {name} is no finite number, so it is left out." for name in left_out)


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
    asked, lines = read_asked(held_out, sft, preference, config, base_scores)
    print_warnings(lines)
    candidates = parse_all(arms) + [Candidate(*adapter) for adapter in adapters]
    score(candidates, config, output_dir, asked, on_scored=say)


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
    except OSError as error:
        if error.filename is None:  # no file of the user's: whatever a library has to say, with its traceback
            raise
        click.echo(f"Error: {error.filename}: {error.strerror or error}", err=True)
        return BAD_INPUT
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
