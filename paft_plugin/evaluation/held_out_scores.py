"""Scores of held-out rows, row by row: what a model makes of right, better and worse answers, and how far it is from the base."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

from pydantic import Field

from paft_plugin.errors import PaftError, collecting, raise_if_any
from paft_plugin.evaluation.held_out_rows import (
    KL,
    RETAINED,
    AnswerRow,
    HeldOutRow,
    PairRow,
    Split,
    Tokens,
    read_rows,
    write_rows,
)
from paft_plugin.evaluation.items import ItemScore
from paft_plugin.evaluation.results import ArmScore, Measure
from paft_plugin.files import JsonFile, fingerprint, write_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from paft_plugin.evaluation.likelihood import AnswerModel, BaseOutput, Continuation, Likelihood

MATCHED = 64
"""Tokens of a reference at most that a greedy answer is compared with: a longer one has too many right wordings."""
MOST_SAID = 2 * MATCHED
"""Tokens after which an answer that has not ended is wrong."""
RETAINED_TOKENS = 64
"""Of the base's own answers, which are scored for what should be retained."""
FOLDER = "held_out"
KEPT_FILE, OUTPUT_FILE, RETAINED_FILE = "kept.json", "kept.safetensors", "retained.jsonl"
"""In the folder of the base's scores: what its other arms are compared with."""


Row = TypeVar("Row", bound=HeldOutRow)


@dataclass(frozen=True)
class HeldOut:
    """The rows that arms are scored on, by branch."""

    answers: Mapping[str, Sequence[AnswerRow]] = field(default_factory=dict)
    """Of SFT branches."""
    pairs: Mapping[str, Sequence[PairRow]] = field(default_factory=dict)
    """Of preference branches."""
    retained: Sequence[AnswerRow] | None = None
    """What no branch should change; None: the base's own answers to the prompts of pairs (`Kept.retained`)."""

    def __bool__(self) -> bool:
        return bool(self.rows)

    @property
    def rows(self) -> Mapping[str, Sequence[HeldOutRow]]:
        """All rows, by branch and `retained`."""
        return {**self.answers, **self.pairs, **({RETAINED: self.retained} if self.retained else {})}

    def readable(self, context: int | None) -> tuple[HeldOut, list[str]]:
        """The rows that a model with a `context` of so many tokens can read, and a line on each branch with longer ones.

        Raises:
            PaftError: Of a branch no row is left.
        """
        if context is None:
            return self, []

        def fit(rows: Sequence[Row]) -> list[Row]:
            return [row for row in rows if len(row.prompt) + max(map(len, row.answers)) <= context]

        found = HeldOut(
            {name: fit(rows) for name, rows in self.answers.items()},
            {name: fit(rows) for name, rows in self.pairs.items()},
            None if self.retained is None else fit(self.retained),
        )
        lines, problems = [], []
        for name, rows in self.rows.items():
            left = len(found.rows.get(name, ()))
            if left < len(rows):
                said = f"{FOLDER}/{name}: {len(rows) - left} of {len(rows)} rows are longer than the model's {context} tokens"
                lines.append(f"{said}, and left out.")
                problems += [] if left else [f"{said}. Hold out shorter rows, or none of this branch."]
        raise_if_any(problems)
        return found, lines

    def measures(self) -> list[Measure]:
        """What is measured on these rows, in the order of the table."""
        found = []
        for name, rows in self.answers.items():
            found += [_measure(name, "match", more_is_better=True)] if _is_matched(rows) else []
            found += [_measure(name, "nll", more_is_better=False)]
        for name in self.pairs:
            found += [Measure(name, f"{FOLDER}/{name}", "gain", "none", True)]
            found += [_measure(name, what, more_is_better=True) for what in ("gained", "by_total", "by_token")]
        found += [Measure(KL, FOLDER, KL, "none", False)] if self.answers or self.pairs else []
        if self.retained or (self.retained is None and self.pairs):
            found += [Measure(RETAINED, f"{FOLDER}/{RETAINED}", "nll", "none", False)]
        return found


def _measure(branch: str, what: str, *, more_is_better: bool) -> Measure:
    return Measure(f"{branch}_{what}", f"{FOLDER}/{branch}", what, "none", more_is_better)


def _is_matched(rows: Sequence[AnswerRow]) -> bool:
    """Whether at least half of the references are short enough to be met word for word."""
    return 2 * sum(len(row.answer) <= MATCHED for row in rows) >= len(rows)


def read_held_out(
    folder: Path, sft: Iterable[str], preference: Iterable[str], split: Split = "test", *, own_answers: bool = True
) -> tuple[HeldOut, list[str]]:
    """The rows of one split of SFT branches and of preference branches, and a line on each that has none.

    `own_answers`: where no rows are given to be retained, the base's own answers are.

    Raises:
        PaftError: A file cannot be read; all that is wrong.
    """
    lines: list[str] = []
    problems: list[str] = []

    def of_split(name: str, kind: type[Row]) -> dict[str, list[Row]]:
        file = folder / f"{name}.jsonl"
        rows: list[Row] = []
        with collecting(problems):
            rows = [row for row in read_rows(file, kind) if row.split == split] if file.is_file() else []
            if not rows and name != RETAINED:
                lines.append(f"{file}: no rows of the {split} split, so no model is scored on this branch's data.")
        return {name: rows} if rows else {}

    answers = {name: rows for branch in sft for name, rows in of_split(branch, AnswerRow).items()}
    pairs = {name: rows for branch in preference for name, rows in of_split(branch, PairRow).items()}
    retained = of_split(RETAINED, AnswerRow).get(RETAINED)
    raise_if_any(problems)
    return HeldOut(answers, pairs, retained if retained or own_answers else ()), lines


# --- what is kept of the base -------------------------------------------------------------------------------------------


class KeptFile(JsonFile):
    """`kept.json`: what the base came to, for the arms that are compared with it."""

    SCHEMA: ClassVar[int] = 1
    AGAIN: ClassVar[str] = "Score the base again."

    dtype: str
    """In what it was scored, and all are."""
    totals: dict[str, float] = Field(default_factory=dict)
    """Key of a continuation → its log-likelihood."""


@dataclass(frozen=True)
class Kept:
    """What is kept of the base for the arms that are compared with it."""

    totals: Mapping[str, float]
    output: BaseOutput
    retained: Sequence[AnswerRow] = ()
    """Its own answers to the prompts of pairs, where nothing else was given to be retained."""

    def write(self, folder: Path, dtype: str) -> None:
        """Write it into a folder, to be read by another process; `dtype`: in what the base was scored."""
        from safetensors.torch import save

        layer = {"weight": self.output.weight} | ({} if self.output.bias is None else {"bias": self.output.bias})
        rows = {f"hidden {key}": hidden.contiguous() for key, hidden in self.output.hidden.items()}
        write_bytes(folder / OUTPUT_FILE, save({**layer, **rows}))
        write_rows(folder / RETAINED_FILE, self.retained)
        KeptFile(dtype=dtype, totals=dict(self.totals)).write(folder / KEPT_FILE)

    @classmethod
    def read(cls, folder: Path) -> Kept:
        """What `write` wrote.

        Raises:
            PaftError: It is missing or damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from paft_plugin.evaluation.likelihood import BaseOutput

        kept = KeptFile.read(folder / KEPT_FILE)
        try:
            tensors = load_file(folder / OUTPUT_FILE)  # mapped, not read: a tensor is in memory once it is used
        except (SafetensorError, OSError) as error:
            raise PaftError(f"{folder / OUTPUT_FILE}: cannot be read ({error}). {KeptFile.AGAIN}") from None
        weight, bias = tensors.pop("weight"), tensors.pop("bias", None)
        hidden = {key.removeprefix("hidden "): tensor for key, tensor in tensors.items()}
        return cls(kept.totals, BaseOutput(hidden, weight, bias), read_rows(folder / RETAINED_FILE, AnswerRow))


# --- scoring ------------------------------------------------------------------------------------------------------------


class HeldOutScorer:
    """Scores the model inside `model` on held-out rows again and again, whatever its weights are by then.

    `keep_texts`: its own answers are kept, which takes as long as writing them.

    Raises:
        PaftError: Rows are of another tokenizer.
    """

    def __init__(
        self, model: AnswerModel, tokenizer: PreTrainedTokenizerBase, held_out: HeldOut, *, keep_texts: bool = False
    ) -> None:
        raise_if_any(list(_strange(model, held_out)))
        self._model, self._held_out, self._keep_texts = model, held_out, keep_texts
        self._compared = {**held_out.answers, **held_out.pairs}
        self._reference = [one for name, rows in self._compared.items() for one in _answers(name, rows)]
        self._worse = [one for name, rows in held_out.pairs.items() for one in _answers(name, rows, place=1)]
        self._texts = _Texts(tokenizer, held_out)

    def fingerprint(self) -> str:
        """Of the rows that are scored."""
        return fingerprint(row.model_dump_json() for rows in self._held_out.rows.values() for row in rows)

    def score_base(self) -> tuple[list[ItemScore], Kept]:
        """The items of the base itself, and what is kept of it for others."""
        from paft_plugin.evaluation.likelihood import BaseOutput

        found = self._model.likelihoods(self._reference) | self._model.likelihoods(self._worse)
        hidden = {one.key: found[one.key].hidden.cpu() for one in self._reference}
        retained = self._own_answers() if self._held_out.retained is None else ()
        totals = {key: likelihood.total for key, likelihood in found.items()}
        kept = Kept(totals, BaseOutput(hidden, *self._model.output_layer), retained)
        return list(self._items(found | self._of_retained(kept), kept)), kept

    def score(self, base: Kept) -> list[ItemScore]:
        """The items of the model as it is now, compared with the base.

        Raises:
            PaftError: The base was scored on other rows.
        """
        if {one.key for one in (*self._reference, *self._worse)} != base.totals.keys():
            raise PaftError(f"The base was scored on other held-out rows. {KeptFile.AGAIN}")
        # In the same batches as the base's, so that what is the same comes out the same to the last bit.
        found = self._model.likelihoods(self._reference, base.output) | self._model.likelihoods(self._worse)
        return list(self._items(found | self._of_retained(base), base))

    def _of_retained(self, base: Kept) -> dict[str, Likelihood]:
        return self._model.likelihoods(_answers(RETAINED, self._held_out.retained or base.retained))

    def _own_answers(self) -> tuple[AnswerRow, ...]:
        rows = {_key(name, row): row for name, rows in self._held_out.pairs.items() for row in rows}
        said = self._model.greedy({key: row.prompt for key, row in rows.items()}, RETAINED_TOKENS, self._texts.ends)
        return tuple(
            AnswerRow(id=row.id, split=row.split, source=row.source, prompt=row.prompt, answer=said[key])
            for key, row in rows.items()
        )

    def _items(self, found: Mapping[str, Likelihood], base: Kept) -> Iterator[ItemScore]:
        for name, rows in self._held_out.answers.items():
            if _is_matched(rows):
                yield from self._matches(name, [row for row in rows if len(row.answer) <= MATCHED], found)
            yield from (_item(f"{name}_nll", row, -found[_key(name, row)].per_token) for row in rows)
        for name, pairs in self._held_out.pairs.items():
            for pair in pairs:
                better, worse = _key(name, pair), _key(name, pair, 1)
                gain = found[better].total - found[worse].total - (base.totals[better] - base.totals[worse])
                yield _item(name, pair, gain)
                yield _item(f"{name}_gained", pair, 0.5 if gain == 0 else float(gain > 0))
                yield _item(f"{name}_by_total", pair, float(found[better].total > found[worse].total))
                yield _item(f"{name}_by_token", pair, float(found[better].per_token > found[worse].per_token))
        for name, references in self._compared.items():
            yield from (_item(KL, row, found[_key(name, row)].divergence or 0.0) for row in references)
        for row in self._held_out.retained or base.retained:
            yield _item(RETAINED, row, -found[_key(RETAINED, row)].per_token)

    def _matches(self, name: str, rows: Sequence[AnswerRow], found: Mapping[str, Likelihood]) -> Iterator[ItemScore]:
        """Whether its greedy answer is the reference; mostly its likelihoods tell, and nothing has to be written."""
        texts = self._texts
        by_key = {_key(name, row): row for row in rows}
        verdicts = {key: texts.verdict(row.answer, found[key].best) for key, row in by_key.items()}
        asked = {key: row.prompt for key, row in by_key.items() if self._keep_texts or verdicts[key] is None}

        def settled(key: str, said: Tokens) -> bool:
            return not self._keep_texts and texts.outcome(by_key[key].answer, said) is not None

        said = self._model.greedy(asked, MOST_SAID, texts.ends, settled)
        for key, row in by_key.items():
            right = bool(texts.outcome(row.answer, said[key])) if key in said else bool(verdicts[key])
            yield _item(f"{name}_match", row, float(right), texts.text(said[key]) if self._keep_texts else None)


def _key(name: str, row: HeldOutRow, place: int = 0) -> str:
    return f"{name}/{row.id}/{place}"


def _answers(name: str, rows: Iterable[HeldOutRow], place: int = 0) -> list[Continuation]:
    """One of the answers of each row, the first or the second."""
    from paft_plugin.evaluation.likelihood import Continuation

    return [Continuation(_key(name, row, place), row.prompt, row.answers[place]) for row in rows]


def _item(measure: str, row: HeldOutRow, value: float, answer: str | None = None) -> ItemScore:
    return ItemScore(measure=measure, item=row.id, value=value, source=row.source, answer=answer)


def _strange(model: AnswerModel, held_out: HeldOut) -> Iterator[str]:
    """A line for each branch with rows that were tokenised for another model."""
    known = model.vocabulary
    for name, rows in held_out.rows.items():
        if count := sum(max(map(max, (row.prompt, *row.answers))) >= known for row in rows):
            yield (
                f"{FOLDER}/{name}: {count} of {len(rows)} rows have tokens that the model does not know (it has {known}): they "
                "were tokenised for another one. Run `axolotl paft run` again, or score models of the same base."
            )


class _Texts:
    """Answers as text, and whether one is the reference: whitespace does not count, nor what stands after the end."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, held_out: HeldOut) -> None:
        self._tokenizer = tokenizer
        marks = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
        marks |= set(tokenizer.all_special_ids)
        # A turn may end with a token that no config calls its end: the one that the training taught, after others of its kind.
        answers = [row.answer for rows in held_out.answers.values() for row in rows]
        taught = {token for answer in answers for token in [t for t in answer if t in marks][-1:]}
        own = tokenizer.eos_token_id
        self.ends = frozenset(taught | (set() if own is None else {own}))

    def text(self, tokens: Tokens) -> str:
        """An answer without its end and other special tokens."""
        words = tokens[:-1] if tokens and tokens[-1] in self.ends else tokens
        decoded = self._tokenizer.decode(words, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(decoded)

    def verdict(self, reference: Tokens, best: Tokens) -> bool | None:
        """Whether the greedy answer is the reference, told from the likeliest token after each part of it; None: it may be."""
        same = next((place for place, token in enumerate(reference) if best[place] != token), len(reference))
        return self.outcome(reference, (*reference[:same], *best[same : same + 1]))

    def outcome(self, reference: Tokens, said: Tokens) -> bool | None:
        """Whether an answer is the reference, from how it begins or, with an end, as a whole; None: it cannot be told yet."""
        from paft_plugin.evaluation.likelihood import up_to_end

        said = up_to_end(said, self.ends)
        wanted, text = (" ".join(self.text(up_to_end(tokens, self.ends)).split()) for tokens in (reference, said))
        if said and said[-1] in self.ends:
            return text == wanted
        # Half of a character is no text yet.
        return None if wanted.startswith(text) or "\N{REPLACEMENT CHARACTER}" in text else False


# --- the scores of an arm ------------------------------------------------------------------------------------------------


def summarised(items: Iterable[ItemScore]) -> ArmScore:
    """The mean of each measure over its items, with its standard error; only `n` of one with an item that is not finite."""
    values: dict[str, list[float]] = {}
    for item in items:
        values.setdefault(item.measure, []).append(item.value)
    means = {name: sum(each) / len(each) for name, each in values.items() if all(map(math.isfinite, each))}
    return ArmScore(
        scores=means,
        stderr={name: _error(values[name], mean) for name, mean in means.items() if len(values[name]) > 1},
        n={name: len(each) for name, each in values.items()},
    )


def _error(values: Sequence[float], mean: float) -> float:
    return float((sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values)) ** 0.5)
