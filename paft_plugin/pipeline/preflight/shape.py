"""Whether rows have the shape that a strategy wants: axolotl's own strategy is run on them. Needs axolotl; runs in the probe."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from paft_plugin.errors import Findings, one_line, some
from paft_plugin.pipeline.preflight.data_files import DataRow
from paft_plugin.pipeline.preflight.row_texts import RowText, is_conversation, is_missing, left_out, letters
from paft_plugin.pipeline.preflight.row_types import (
    KNOWN,
    SIDES,
    in_columns,
    preference_advice,
    sft_advice,
)

IGNORED = -100
MOST_MESSAGES = 2
"""Of one kind about one data set: a file that is wrong throughout should not fill the screen."""
TEXTS = ("prompt", "chosen", "rejected", "completion", "messages")
"""The columns that TRL looks at to tell texts from conversations."""
_TYPES = {
    "orpo": "type: chat_template.argilla",
    "kto": "chatml.ultra, llama3.ultra or the like, or user-defined fields",
    "dpo": "type: chat_template.default, chatml.…, llama3.… or user-defined fields",
}
"""What there is under each `rl`; others go as DPO."""


@dataclass
class Shape(Findings):
    """What came of some rows."""

    prompts: list[str] = field(default_factory=list)
    """What comes before each answer, as text."""


def shape_of(cfg: Any, tokenizer: Any, index: int, rows: Sequence[DataRow], where: str) -> Shape:
    """Run the strategy of `datasets[index]` of a validated config on `rows`."""
    kind = cfg.datasets[index].type
    said = kind if isinstance(kind, str) else "user-defined" if kind else "none"
    what = f"{where}: datasets[{index}] (type: {said})"
    if cfg.rl:
        return _preference(cfg, tokenizer, index, rows, what, str(getattr(cfg.rl, "value", cfg.rl)))
    return _sft(cfg, tokenizer, index, rows, what)


# --- SFT ----------------------------------------------------------------------------------------------------------------


def _sft(cfg: Any, tokenizer: Any, index: int, rows: Sequence[DataRow], what: str) -> Shape:
    shape = Shape()
    entry = cfg.datasets[index]
    if not entry.type:
        shape.problem(f"{what}: `type` is missing. Say how a row is read: chat_template, alpaca …")
        return shape
    try:
        tokenised = _tokenised(cfg, tokenizer, entry, [row.content for row in rows])
    except Exception:  # a strategy raises whatever it likes: which rows is it?
        for row in rows:
            try:
                _tokenised(cfg, tokenizer, entry, [row.content])
            except Exception as error:
                shape.problem(_unreadable(what, row, error, sft_advice(row.content)))
            if len(shape.problems) == MOST_MESSAGES:
                break
        return shape
    untrained = []
    for row, tokens in zip(rows, tokenised, strict=False):
        start = next((place for place, label in enumerate(tokens["labels"]) if label != IGNORED), None)
        if start is None:
            untrained.append(row)
        elif start:
            shape.prompts.append(tokenizer.decode(tokens["input_ids"][:start]))
    if untrained:
        shape.problem(
            f"{what}: {untrained[0].place}: no token of this row would be trained ({len(untrained)} of {len(tokenised)} rows "
            f"looked at). Is there an answer, and is its role among roles_to_train? {sft_advice(untrained[0].content)}".rstrip()
        )
    _lengths(cfg, [len(tokens["input_ids"]) for tokens in tokenised], what, shape)
    whole = [
        (row, str(tokenizer.decode(tokens["input_ids"])))
        for row, tokens in zip(rows, tokenised, strict=False)
        if len(tokens["input_ids"]) < cfg.sequence_len  # longer ones were cut, which is said elsewhere
    ]
    read = [str(entry.field_messages or "messages")] if "chat_template" in str(entry.type) else []
    found = [(row, _as_decoded(tokenizer, left_out(row.content, read, text), text)) for row, text in whole]
    if entry.drop_system_message:
        found = [(row, [text for text in texts if "system" not in text.place]) for row, texts in found]
    _say_left_out(found, what, sft_advice, shape)
    if read:
        _speakers(entry, read[0], rows, what, shape)
    return shape


def _as_decoded(tokenizer: Any, texts: list[RowText], made: str) -> list[RowText]:
    """Those that are missing as the tokenizer gives them back, too: it may not know every letter."""
    held = letters(made)
    return [text for text in texts if is_missing(str(tokenizer.decode(tokenizer.encode(text.text))), held)]


def _speakers(entry: Any, messages: str, rows: Sequence[DataRow], what: str, shape: Shape) -> None:
    """Those whom axolotl does not know get their own markers, and nothing of theirs is trained."""
    key = (entry.message_property_mappings or {}).get("role", "role")
    known = {name for names in (entry.roles or {}).values() for name in names} or KNOWN
    said = {str(each.get(key)) for row in rows for each in row.content.get(messages) or [] if isinstance(each, Mapping)}
    if unknown := sorted(said - known - set(entry.roles_to_train or [])):
        shape.warn(
            f"{what}: messages by {some(unknown)}: axolotl does not know who that is, writes it into the chat template as it is, "
            "and trains nothing of it. Say it under `roles`, such as {assistant: [gpt, function_call], tool: [observation]}."
        )


def _tokenised(cfg: Any, tokenizer: Any, entry: Any, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    from datasets import Dataset

    from paft_plugin.pipeline.preflight.axolotl_internals import get_dataset_wrapper, parse_dataset_type

    kind, style = parse_dataset_type(entry.type)
    wrapped, _ = get_dataset_wrapper(entry, tokenizer, cfg, kind, Dataset.from_list(_filled(rows)), style)
    return list(wrapped)


# --- preferences --------------------------------------------------------------------------------------------------------


def _preference(cfg: Any, tokenizer: Any, index: int, rows: Sequence[DataRow], what: str, rl: str) -> Shape:
    shape = Shape()
    try:
        transform = transform_of(cfg, tokenizer, index, rl)
    except Exception as error:
        shape.problem(
            f"{what}: axolotl cannot use this type with rl: {rl} ({_said(error)}). Use {_TYPES.get(rl, _TYPES['dpo'])}."
        )
        return shape
    made: list[tuple[DataRow, dict[str, Any]]] = []
    for row, filled in zip(rows, _filled([row.content for row in rows]), strict=True):
        try:
            result = transform(dict(filled))
        except Exception as error:
            if len(shape.problems) < MOST_MESSAGES:
                shape.problem(_unreadable(what, row, error, preference_advice(row.content, rl)))
            continue
        made.append((row, result))
    for check in (_texts, _literal, _label, _same):
        found = [problem for row, result in made if (problem := check(rl, row, result))]
        say = shape.warn if check is _same else shape.problem
        say(*(f"{what}: {problem}" for problem in found[:MOST_MESSAGES]))
    if not shape.problems:
        _columns(rl, tokenizer, made, what, shape)
        shape.prompts = [result["prompt"] for _, result in made]
        answers = ("completion",) if rl == "kto" else ("chosen", "rejected")
        texts = [[result["prompt"] + result[key] for key in answers] for _, result in made]
        lengths = [max(map(len, tokenizer(sides, add_special_tokens=False)["input_ids"])) for sides in texts]
        _lengths(cfg, lengths, what, shape)
        entry = cfg.datasets[index]
        named = {str(entry.get(key)) for key in ("field_messages", "field_chosen", "field_rejected") if entry.get(key)}
        read = named | {
            *SIDES,
            *(("messages",) if entry.type == "chat_template.default" and not entry.field_messages else ()),
        }
        missing = [
            (row, left_out(row.content, read, "\n".join(side))) for (row, _), side in zip(made, texts, strict=True)
        ]
        _say_left_out(missing, what, partial(preference_advice, rl=rl), shape)
    return shape


def transform_of(cfg: Any, tokenizer: Any, index: int, rl: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """axolotl's function from a row to texts, as `axolotl.utils.data.rl` maps it over a data set."""
    import inspect

    from paft_plugin.pipeline.preflight.axolotl_internals import load_dpo, load_kto, load_orpo

    kind = cfg.datasets[index].type
    if not kind:  # rows are prompt, chosen and rejected already
        return lambda row: row
    name = kind if isinstance(kind, str) else "user_defined.default"
    made = {"orpo": load_orpo, "kto": load_kto}.get(rl, load_dpo)(name, cfg, dataset_idx=index)
    if made is None:
        raise ValueError("there is no such strategy")
    function, options = made if isinstance(made, tuple) else (made, {})
    extra = {"tokenizer": tokenizer} if "tokenizer" in inspect.signature(function).parameters else {}

    def transform(row: dict[str, Any]) -> dict[str, Any]:
        before = dict(row)
        result = function(row, **extra)
        removed = before if options.get("remove_columns") == "__all__" else options.get("remove_columns") or ()
        return {**{key: value for key, value in before.items() if key not in removed}, **result}

    return transform


def _texts(rl: str, row: DataRow, result: Mapping[str, Any]) -> str | None:
    wanted = ("prompt", "completion") if rl == "kto" else ("prompt", "chosen", "rejected")
    for key in wanted:
        if not isinstance(result.get(key), str):
            kind = "missing" if result.get(key) is None else f"no text but a {type(result[key]).__name__}"
            return f"{row.place}: {key} is {kind}. {preference_advice(row.content, rl)}".rstrip()
        if not result[key]:
            return f"{row.place}: {key} comes out empty, at which axolotl stops. Drop the row, or give it a text."
    return None


def _literal(rl: str, row: DataRow, result: Mapping[str, Any]) -> str | None:
    """A strategy that formats a list into its text writes Python brackets and quotes that the model would learn."""
    for name, value in row.content.items():
        if is_conversation(value):
            for key in ("prompt", "chosen", "rejected", "completion"):
                if str(value) in str(result.get(key)):
                    return (
                        f"{row.place}: {name} holds messages, and this type writes them into {key} as Python text, brackets "
                        f"and all. {preference_advice(row.content, rl)}"
                    )
    return None


def _label(rl: str, row: DataRow, result: Mapping[str, Any]) -> str | None:
    if rl == "kto" and not isinstance(result.get("label"), bool):
        return f"{row.place}: label is {result.get('label')!r}. KTO wants true (wanted) or false (unwanted)."
    return None


def _same(_rl: str, row: DataRow, result: Mapping[str, Any]) -> str | None:
    if "chosen" in result and result["chosen"] == result.get("rejected"):
        return f"{row.place}: chosen and rejected are the same, which teaches nothing. Drop such rows."
    return None


def _columns(rl: str, tokenizer: Any, made: list[tuple[DataRow, dict[str, Any]]], what: str, shape: Shape) -> None:
    """TRL takes the type of one arbitrary column of a set for that of all: which one depends on Python's hash seed."""
    lists = [key for key in TEXTS if made and not isinstance(made[0][1].get(key, ""), str)]
    if not lists:
        return
    column = lists[0]
    if rl == "orpo":
        shape.problem(
            f"{what}: the rows have a column {column!r} beside chosen and rejected, at which TRL's ORPO trainer stops in some "
            "runs and not in others. Rename or remove it in the data."
        )
    elif rl != "kto" and not made[0][1]["chosen"].endswith(str(tokenizer.eos_token)):
        shape.warn(
            f"{what}: the rows have a column {column!r} beside chosen and rejected, so that whether TRL ends an answer with "
            "its EOS token differs from run to run. Rename or remove it in the data."
        )


# --- both ---------------------------------------------------------------------------------------------------------------


def _filled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`datasets` gives every row every column."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name) for name in names} for row in rows]


def _say_left_out(
    found: list[tuple[DataRow, list[RowText]]], what: str, advice: Callable[[dict[str, Any]], str], shape: Shape
) -> None:
    """What of the rows is in no prompt and no answer: of what is meant each column, of the rest all in a line."""
    # A single word is an id, a source, the name of a model.
    others = [text for _, texts in found for text in texts if not text.meant and " " in text.text.strip()]
    if others:
        names = [f"{place} ({text!r})" for place, text in in_columns(others)]
        shape.warn(f"{what}: left out of what is trained on: {some(names)}.")
    lost = [(row, [text for text in texts if text.meant]) for row, texts in found]
    lost = [(row, texts) for row, texts in lost if texts]
    for place, shown in list(in_columns([text for _, texts in lost for text in texts]))[:MOST_MESSAGES]:
        row = next(row for row, texts in lost if any(text.place == place for text in texts))
        count = sum(any(text.place == place for text in texts) for _, texts in lost)
        shape.problem(
            f"{what}: {row.place}: {place} ({shown!r}) is neither in the prompt nor in an answer as axolotl reads this row "
            f"({count} of {len(found)} rows looked at). {advice(row.content)} If it is to be left out, remove it from the data."
        )


def _lengths(cfg: Any, lengths: list[int], what: str, shape: Shape) -> None:
    """Rows that do not fit are dropped before training, unless the config says otherwise."""
    strategy = str(cfg.excess_length_strategy or "drop").lower()
    long = [length for length in lengths if length > cfg.sequence_len]
    if not long:
        return
    share = f"{len(long)} of {len(lengths)} rows looked at have more than sequence_len: {cfg.sequence_len} tokens"
    remedy = f"Raise sequence_len (the longest has {max(long)})"
    if strategy == "raise":
        shape.problem(f"{what}: {share}, at which excess_length_strategy: raise stops. {remedy}, or drop them.")
    elif strategy == "drop" and len(long) == len(lengths):
        shape.problem(f"{what}: {share}, so axolotl would drop them all. {remedy}.")
    elif strategy == "drop" and 10 * len(long) > len(lengths):
        shape.warn(f"{what}: {share}; axolotl drops such rows. {remedy}, or set excess_length_strategy: truncate.")


def _unreadable(what: str, row: DataRow, error: Exception, advice: str) -> str:
    fields = ", ".join(row.content) or "none"
    return f"{what}: {row.place}: axolotl cannot read this row ({_said(error)}); its fields are {fields}. {advice}".rstrip()


def _said(error: Exception) -> str:
    """An exception in few words; a bare KeyError names only its key."""
    text = one_line(error, 200)
    return f"no {text}" if isinstance(error, KeyError) else text


def common_ending(texts: Sequence[str]) -> str:
    """What all prompts end with: how a strategy leads over to an answer, from its first line break or marker on."""
    if len(set(texts)) < 2:
        return ""
    ending = os.path.commonprefix([text[::-1] for text in texts])[::-1]
    starts = [place for mark in "\n<[" if (place := ending.find(mark)) >= 0]
    return ending[min(starts) :] if starts else ""
