"""`python -m paft_plugin.pipeline.joint_rows REQUEST`: the rows of all branches as those of one preference training.

Each row stands there as often as its own branch's training sees it. Needs axolotl, whose own strategies read the rows.
"""

from __future__ import annotations

import json
import logging
import math
import random
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from paft_plugin.errors import PaftError, run_request
from paft_plugin.files import write_text
from paft_plugin.pipeline.branches import Branch
from paft_plugin.pipeline.held_out.data import answer_starts, load_data_set, open_config
from paft_plugin.pipeline.held_out.request import Question
from paft_plugin.pipeline.preflight.shape import IGNORED, transform_of
from paft_plugin.reading import read_json_file

ROWS_FILE = "rows.jsonl"
Texts = dict[str, Any]
KEYS = ("prompt", "chosen", "rejected", "completion", "label")
"""Of KTO `prompt`, `completion` and `label`."""


class JointSource(BaseModel):
    """One branch's rows, and how often its own training sees them."""

    model_config = ConfigDict(frozen=True)

    question: Question
    times: float
    """How often each row is seen where no steps are said, in each of the joint training's epochs."""
    steps: int | None = None
    batch: int
    """Rows of a step, or with `packed` sequences of `sequence_len` tokens."""
    packed: bool = False
    sequence_len: int


def joint_source(question: Question, branch: Branch, epochs: int) -> JointSource:
    """A branch's rows, of a joint training that goes through all of them so many times."""
    config = branch.content
    return JointSource(
        question=question,
        times=_positive(config, "num_epochs", 1.0) / epochs,
        steps=round(_positive(config, "max_steps", 0)) or None,
        batch=round(
            _positive(config, "micro_batch_size", 1)
            * _positive(config, "gradient_accumulation_steps", 1)
            * branch.spec.devices
        ),
        packed=bool(config.get("sample_packing")),
        sequence_len=round(_positive(config, "sequence_len", 512)),
    )


def _positive(config: Mapping[str, Any], key: str, otherwise: float) -> float:
    """A number of a config; what is none is preflight's to name."""
    value = config.get(key)
    return value if isinstance(value, (int, float)) and value > 0 else otherwise


class JointRequest(BaseModel):
    """What is asked."""

    model_config = ConfigDict(frozen=True)

    folder: Path
    """Gets the rows."""
    strategy: str
    """Of the joint training: axolotl's `rl`."""
    seed: int
    sources: tuple[JointSource, ...]


def write_joint_rows(request: JointRequest) -> list[str]:
    """Write the rows; returns a line on each branch.

    Raises:
        PaftError: Rows that axolotl cannot read, or of which nothing is left.
    """
    rows: list[Texts] = []
    lines = []
    for source in request.sources:
        with tempfile.TemporaryDirectory(prefix="paft-joint-") as scratch:
            found, read, tokens = _read(source, request.strategy, Path(scratch))
        if not found:
            where = source.question.where
            raise PaftError(f"{where}: none of its rows has both a prompt and an answer, as a joint training needs.")
        seen = list(_as_often(found, _visits(source, len(found), read, tokens), request.seed))
        lines.append(f"{source.question.name}: {len(found)} different rows, {len(seen)} in all")
        rows += seen
    write_text(request.folder / ROWS_FILE, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
    return lines


def _visits(source: JointSource, rows: int, read: int, tokens: int) -> int:
    """How many of `rows`, one for each answer in `read` rows of so many tokens, a branch's own training sees."""
    if source.steps is None:
        return max(1, round(source.times * rows))
    if not source.packed:
        return round(source.steps * source.batch * rows / read)
    return math.ceil(source.steps * source.batch * source.sequence_len * rows / max(tokens, 1))


def _as_often(rows: Sequence[Texts], visits: int, seed: int) -> Iterator[Texts]:
    """So many rows: all of them, shuffled, again and again."""

    def forever() -> Iterator[Texts]:
        draw, order = random.Random(seed), list(rows)
        while True:
            draw.shuffle(order)
            yield from order

    return islice(forever(), visits)


def _read(source: JointSource, strategy: str, folder: Path) -> tuple[list[Texts], int, int]:
    """The rows of a branch as texts, one for each answer; how many rows of its data they are, and their tokens."""
    cfg, tokenizer = open_config(source.question.content, source.question.where, folder)
    rows: list[Texts] = []
    read = tokens = 0
    for index, entry in enumerate(cfg.datasets or []):
        data = load_data_set(cfg, entry)
        try:
            if cfg.rl:
                transform = transform_of(cfg, tokenizer, index, source.question.content["rl"])
                rows += [{key: row[key] for key in KEYS if key in row} for row in map(transform, map(dict, data))]
                read = len(rows)
            else:
                for ids, spans in _spans(cfg, tokenizer, entry, data):
                    texts = (_as_texts(tokenizer, ids[:start], ids[start:end]) for start, end in spans)
                    rows += [_equal_sides(*each, strategy) for each in texts]
                    read, tokens = read + 1, tokens + len(ids)
        except Exception as error:  # strategies raise all kinds
            said = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            raise PaftError(
                f"{source.question.where}: datasets[{index}]: axolotl cannot read these rows ({said})."
            ) from error
    return rows, read, tokens


def _equal_sides(prompt: str, answer: str, strategy: str) -> Texts:
    """A row of SFT among those of a preference training."""
    if strategy == "kto":
        return {"prompt": prompt, "completion": answer, "label": True}
    return {"prompt": prompt, "chosen": answer, "rejected": answer}


def _spans(cfg: Any, tokenizer: Any, entry: Any, data: Any) -> Iterator[tuple[list[int], list[tuple[int, int]]]]:
    """The tokens of each row, with the start and end of every span that SFT trains; one that stands first has no prompt."""
    from paft_plugin.pipeline.preflight.axolotl_internals import get_dataset_wrapper, parse_dataset_type

    kind, style = parse_dataset_type(entry.type)
    for row in get_dataset_wrapper(entry, tokenizer, cfg, kind, data, style)[0]:
        ids, labels = list(row["input_ids"]), row["labels"]
        starts = answer_starts(labels)
        ends = [next((at for at in range(start, len(ids)) if labels[at] == IGNORED), len(ids)) for start in starts]
        yield ids, list(zip(starts, ends, strict=True))


def _as_texts(tokenizer: Any, prompt: list[int], answer: list[int]) -> tuple[str, str]:
    """Prompt and answer as texts that come to the same tokens; a token that the tokenizer itself puts in front is left out."""
    before, after = (tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in (prompt, answer))
    first = tokenizer.bos_token
    if first and before.startswith(first) and tokenizer(before)["input_ids"] != prompt:
        shorter = before.removeprefix(first)
        if tokenizer(shorter)["input_ids"] == prompt:
            return shorter, after
    return before, after


def work(file: Path) -> None:
    """Write the rows that a request asks for."""
    logging.disable(logging.INFO)
    print(
        "\n".join(write_joint_rows(JointRequest.model_validate(read_json_file(file, "Run `axolotl paft run` again."))))
    )


if __name__ == "__main__":
    sys.exit(run_request(sys.argv[1:], "paft_plugin.pipeline.joint_rows", work))
