"""One branch's rows through axolotl's eyes: loaded, made into tokens and parted as its training would. Needs axolotl."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from paft_plugin.errors import PaftError, raise_if_any
from paft_plugin.evaluation.held_out_rows import AnswerRow, HeldOutRow, PairRow, Split
from paft_plugin.files import fingerprint
from paft_plugin.pipeline.held_out.choice import RowIdentity, normalised
from paft_plugin.pipeline.preflight.ask import Answer
from paft_plugin.pipeline.preflight.row_texts import CALLS, ROLES, is_conversation, letters, texts_of
from paft_plugin.pipeline.preflight.shape import IGNORED, transform_of

TOOLS, IMAGES = "have tools", "have images, sound or video"
EMPTY, NO_PROMPT = "have an empty answer", "have nothing before the answer, or no answer at all"
SAME, ALONE = "have chosen = rejected", "have no counterpart with the other label"
LONG = "fill the context of {} tokens, or are longer"
"""Why rows cannot be scored."""
_LONGEST = 1 << 30
_MEDIA = ("Image(", "Audio(", "Video(")
Tokens = dict[str, Sequence[int]]


@dataclass(frozen=True)
class Entry:
    """One data set of a branch."""

    dataset: Any
    """All of its rows, as axolotl loads them."""
    source: str
    candidates: list[RowIdentity]
    """For each of its rows."""
    tokens: Callable[[int], Tokens]
    """The tokens of a row that is fit: prompt and answer, or prompt, chosen and rejected."""


class BranchRows:
    """All rows of one branch, numbered through."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.entries = list(entries)

    @property
    def candidates(self) -> list[RowIdentity]:
        return [row for entry in self.entries for row in entry.candidates]

    def held_out(self, splits: Mapping[int, Split]) -> Iterator[HeldOutRow]:
        """The rows that are scored, in an order that is the same whatever that of the data."""
        placed = [(entry, row) for entry in self.entries for row in range(len(entry.candidates))]
        for index in sorted(splits, key=lambda each: placed[each][0].candidates[placed[each][1]].content):
            entry, row = placed[index]
            made, of_row = entry.tokens(row), entry.candidates[row]
            kind = PairRow if "chosen" in made else AnswerRow
            yield kind.model_validate({"id": of_row.content, "split": splits[index], "source": entry.source, **made})

    def write_rest(self, prompts: set[str | None], file_of: Callable[[int], Path]) -> list[int]:
        """Write each data set without the rows that have one of `prompts`; returns how many rows are left of each."""
        counts = []
        for index, entry in enumerate(self.entries):
            left = [row for row, each in enumerate(entry.candidates) if not (each.prompts - {None}) & prompts]
            file = file_of(index)
            file.parent.mkdir(parents=True, exist_ok=True)
            entry.dataset.select(left).to_parquet(str(file))
            counts.append(len(left))
        return counts


def read_branch_rows(content: Mapping[str, Any], where: str, base: Path, folder: Path) -> BranchRows:
    """The rows of an axolotl config's `datasets`; `folder` is for whatever axolotl writes.

    Raises:
        PaftError: axolotl refuses the config, or cannot read its data.
    """
    cfg, tokenizer = open_config(content, where, folder)
    reader = _Reader(cfg, tokenizer, where, _context(base, cfg.sequence_len))
    return BranchRows(reader.entry(index) for index in range(len(cfg.datasets or [])))


def open_config(content: Mapping[str, Any], where: str, folder: Path) -> tuple[Any, Any]:
    """An axolotl config as axolotl sees it, and the tokenizer that it trains with; `folder` is for whatever axolotl writes.

    Raises:
        PaftError: axolotl refuses the config.
    """
    from paft_plugin.pipeline.preflight.view import load_tokenizer_of, schema_of, validated

    answer = Answer()
    cfg = validated(content, where, False, answer) if schema_of(content, where, answer) else None
    tokenizer = load_tokenizer_of(cfg, where, answer) if cfg is not None else None
    raise_if_any(answer.problems)
    assert cfg is not None
    cfg.output_dir = str(folder)
    return cfg, tokenizer


def load_data_set(cfg: Any, entry: Any) -> Any:
    """A data set of a config as axolotl takes it: of several splits the one that is named, else `train`."""
    from datasets import DatasetDict

    from paft_plugin.pipeline.preflight.axolotl_internals import load_dataset_with_config

    dataset = load_dataset_with_config(entry, cfg.hf_use_auth_token)
    if isinstance(dataset, DatasetDict):
        return dataset[entry.split if not cfg.rl and entry.split in dataset else "train"]
    return dataset


def _context(base: Path, sequence_len: int) -> int:
    """How many tokens a row may have: what the branch is trained with, or the base can at all."""
    from paft_plugin.pipeline.estimate.shapes import model_config_of

    most = model_config_of(base).get("max_position_embeddings")
    return min(sequence_len, most) if isinstance(most, int) and most > 0 else sequence_len


class _Reader:
    """Reads the data sets of one config."""

    def __init__(self, cfg: Any, tokenizer: Any, where: str, context: int) -> None:
        self.cfg, self.tokenizer, self.where, self.context = cfg, tokenizer, where, context
        self.rl = str(getattr(cfg.rl, "value", cfg.rl)) if cfg.rl else ""

    def entry(self, index: int) -> Entry:
        """Load and read `datasets[index]`."""
        given = self.cfg.datasets[index]
        place = f"{self.where}: datasets[{index}] ({given.path})"
        try:
            dataset = load_data_set(self.cfg, given)
            media = [name for name, kind in dataset.features.items() if any(each in str(kind) for each in _MEDIA)]
            rows = list(dataset.remove_columns(media))
            special = [IMAGES if media else _special(row) for row in rows]
            read = self._pairs(index, rows) if self.rl else self._answers(given, dataset, special)
        except Exception as error:  # datasets and strategies raise all kinds
            said = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            raise PaftError(f"{place}: axolotl cannot read these rows to hold some out ({said}).") from error
        candidates = [
            RowIdentity(
                self._prompt(row, made.prompt),
                _content(row),
                strange or made.unfit,
                frozenset(known for text in made.earlier if (known := self._prompt(row, text))),
            )
            for row, made, strange in zip(rows, read.rows, special, strict=True)
        ]
        return Entry(dataset, Path(str(given.path)).name, candidates, read.tokens)

    def _prompt(self, row: Mapping[str, Any], prompt: str | None) -> str | None:
        """Fingerprint of a prompt in a row: the texts of the row that stand in it, but for the system's, which say what to be."""
        if prompt is None:
            return None
        held = letters(prompt)
        found = {text.text: letters(text.text) for text in texts_of(row, ()) if "system" not in text.place}
        found = {text: plain for text, plain in found.items() if plain and plain in held}
        whole = [
            text
            for text, plain in found.items()
            if not any(plain in other and plain != other for other in found.values())
        ]
        return fingerprint([normalised(" ".join(whole) or prompt)])

    # --- SFT ---

    def _answers(self, entry: Any, dataset: Any, special: Sequence[str]) -> _Read:
        """What SFT makes of rows: the last span that is trained is the answer, all before it the prompt."""
        from datasets import Dataset

        from paft_plugin.pipeline.preflight.axolotl_internals import get_dataset_wrapper, parse_dataset_type

        cfg = self.cfg
        cfg.train_on_inputs = False  # it changes what is trained, not the tokens; and here an answer is one
        kind, style = parse_dataset_type(entry.type)

        def tokenised(rows: Any) -> Any:
            return get_dataset_wrapper(entry, self.tokenizer, cfg, kind, rows, style)[0]

        try:
            whole: Any = tokenised(dataset)
        except Exception:
            # Rows that are not scored anyway may be what this process has no reader for.
            plain = [row for row, strange in enumerate(special) if not strange]
            if len(plain) == len(special):
                raise
            made = tokenised(dataset.select(plain))
            whole = [None] * len(special)
            for row, tokens in zip(plain, made, strict=True):
                whole[row] = tokens
        if len(whole) != len(special) or (isinstance(whole, Dataset) and "labels" not in whole.column_names):
            return _Read([_Made(None, NO_PROMPT)] * len(special), lambda _row: {})
        return _Read([self._answer(tokens) for tokens in whole], lambda row: _parted(whole[row]))

    def _answer(self, tokens: Mapping[str, Any] | None) -> _Made:
        if tokens is None:
            return _Made(None)
        parted = _parted(tokens)
        prompt = self.tokenizer.decode(parted["prompt"], skip_special_tokens=True)
        starts = [at for at in answer_starts(tokens["labels"]) if at < len(parted["prompt"])]
        earlier = [self.tokenizer.decode(tokens["input_ids"][:at], skip_special_tokens=True) for at in starts]
        if not parted["prompt"] or not parted["answer"]:
            return _Made(prompt or None, NO_PROMPT, earlier)
        if len(tokens["input_ids"]) >= self.context:
            return _Made(prompt, LONG.format(self.context), earlier)
        empty = not self.tokenizer.decode(parted["answer"], skip_special_tokens=True).strip()
        return _Made(prompt, EMPTY if empty else "", earlier)

    # --- preferences ---

    def _pairs(self, index: int, rows: Sequence[dict[str, Any]]) -> _Read:
        """What a preference training makes of rows."""
        transform = transform_of(self.cfg, self.tokenizer, index, self.rl)
        made = [transform(dict(row)) for row in rows]
        texts = _partners(made) if self.rl == "kto" else made
        problems = [_text_problem(each) for each in texts]
        fit = [row for row, problem in enumerate(problems) if not problem]
        tokens = dict(zip(fit, self._as_trl([texts[row] for row in fit]), strict=True))
        read = []
        for row, (each, problem) in enumerate(zip(made, problems, strict=True)):
            read.append(_Made(str(each.get("prompt") or "") or None, problem or self._pair_problem(tokens[row])))
        return _Read(read, lambda row: tokens[row])

    def _pair_problem(self, tokens: Tokens) -> str:
        length = len(tokens["prompt"]) + max(len(tokens["chosen"]), len(tokens["rejected"]))
        return NO_PROMPT if not tokens["prompt"] else LONG.format(self.context) if length >= self.context else ""

    def _as_trl(self, pairs: list[dict[str, Any]]) -> list[Tokens]:
        """The token ids that TRL's trainer of this strategy makes of texts."""
        from datasets import Dataset

        from paft_plugin.pipeline.preflight.axolotl_internals import preference_trainer

        if not pairs:
            return []
        trainer = preference_trainer(self.rl)
        if hasattr(trainer, "tokenize_row"):
            return [_one_by_one(trainer, self.tokenizer, pair) for pair in pairs]
        texts = [{key: pair[key] for key in ("prompt", "chosen", "rejected")} for pair in pairs]
        arguments = SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode="keep_start")
        stand_in = SimpleNamespace(_tokenizer=self.tokenizer)
        made = trainer._prepare_dataset(stand_in, Dataset.from_list(texts), self.tokenizer, arguments, "held out")
        return [{key: row[f"{key}_ids"] for key in ("prompt", "chosen", "rejected")} for row in made]


@dataclass(frozen=True)
class _Made:
    """What came of a row."""

    prompt: str | None
    """As text; None where it could not be told."""
    unfit: str = ""
    earlier: Sequence[str] = ()
    """What stands before each answer that is trained above the last one."""


@dataclass(frozen=True)
class _Read:
    rows: list[_Made]
    tokens: Callable[[int], Tokens]


def _special(row: Mapping[str, Any]) -> str:
    """Why a row can be trained on, but not be scored as text."""
    for column, value in row.items():
        if not value:
            continue
        if column in ("image", "images", "audio", "audios", "video", "videos"):
            return IMAGES
        if column in ("tools", "functions"):
            return TOOLS
        for message in value if is_conversation(value) else ():
            if any(message.get(key) for key in CALLS) or any(message.get(key) in ("tool", "function") for key in ROLES):
                return TOOLS
            parts = message.get("content")
            if isinstance(parts, list) and any(
                isinstance(part, Mapping) and part.get("type", "text") != "text" for part in parts
            ):
                return IMAGES
    return ""


def _content(row: Mapping[str, Any]) -> str:
    """Fingerprint of a row: the same in any file format, in which other rows may have more columns."""
    return fingerprint([json.dumps(_without_none(row), sort_keys=True, default=str, ensure_ascii=False)])


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _without_none(each) for key, each in value.items() if each is not None}
    return [_without_none(each) for each in value] if isinstance(value, (list, tuple)) else value


def answer_starts(labels: Sequence[int]) -> list[int]:
    """Where each span that is trained begins; one that stands first has nothing before it, and is left out."""
    return [at for at in range(1, len(labels)) if labels[at] != IGNORED and labels[at - 1] == IGNORED]


def _parted(tokens: Mapping[str, Any]) -> Tokens:
    """Prompt and answer of a row that is trained on: its last span of labels, and what is before it."""
    labels = tokens["labels"]
    end = next((place for place in range(len(labels), 0, -1) if labels[place - 1] != IGNORED), 0)
    start = next((place for place in range(end, 0, -1) if labels[place - 1] == IGNORED), 0)
    return {"prompt": tokens["input_ids"][:start], "answer": tokens["input_ids"][start:end]}


def _text_problem(pair: Mapping[str, Any]) -> str:
    if not pair.get("prompt") or "chosen" not in pair:
        return NO_PROMPT if not pair.get("prompt") else ALONE
    if not (pair["chosen"] or "").strip() or not (pair["rejected"] or "").strip():
        return EMPTY
    return SAME if pair["chosen"] == pair["rejected"] else ""


def _partners(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """KTO's rows as pairs: each wanted answer with the first unwanted one to the same prompt, and the other way round."""
    first: dict[tuple[str, bool], str] = {}
    for row in rows:
        first.setdefault((row["prompt"], bool(row["label"])), row["completion"])
    pairs = []
    for row in rows:
        other = first.get((row["prompt"], not row["label"]))
        sides = (row["completion"], other) if row["label"] else (other, row["completion"])
        pairs.append(
            {"prompt": row["prompt"]} | ({} if other is None else dict(zip(("chosen", "rejected"), sides, strict=True)))
        )
    return pairs


def _one_by_one(trainer: Any, tokenizer: Any, pair: Mapping[str, Any]) -> Tokens:
    """The tokens of a pair as ORPO and CPO make them: answers with the prompt before them, labels where the answer is."""
    stand_in = SimpleNamespace(processing_class=tokenizer, is_encoder_decoder=False, max_length=_LONGEST)
    stand_in.build_tokenized_answer = lambda prompt, answer: trainer.build_tokenized_answer(stand_in, prompt, answer)
    made = trainer.tokenize_row(stand_in, pair)
    sides = {}
    for side in ("chosen", "rejected"):
        sides[side] = _parted({"input_ids": made[f"{side}_input_ids"], "labels": made[f"{side}_labels"]})
    if sides["chosen"]["prompt"] != sides["rejected"]["prompt"]:  # a token that prompt and answer share
        return {"prompt": [], "chosen": [], "rejected": []}
    return {"prompt": sides["chosen"]["prompt"], **{side: parted["answer"] for side, parted in sides.items()}}
