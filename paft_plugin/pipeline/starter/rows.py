"""How the rows of a data set are to be read, judging by their fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paft_plugin.errors import PaftError
from paft_plugin.files import resolved
from paft_plugin.pipeline.preflight.data_files import SUFFIXES, Sample, local_files, read_sample
from paft_plugin.pipeline.preflight.row_types import is_conversation, preference_entry, sft_advice, sft_entry

ALPACA = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a response "
    "that appropriately completes the request."
)
"""What axolotl puts before each of these rows; here only its length counts."""


@dataclass(frozen=True)
class Reading:
    """An entry of axolotl's `datasets`, why it is as it is, and what was looked at."""

    entry: dict[str, Any]
    why: dict[str, str]
    alpaca: bool = False
    """Whether axolotl writes its own alpaca markers around these rows, whatever the chat template."""
    texts: Sequence[Sequence[str]] = field(default_factory=tuple)
    """For each row looked at, the texts of its longest conversation."""
    count: int | None = None
    """Rows; None if they were not looked at."""


def read_sft(data: str) -> Reading:
    """How to read SFT data: a local path, or a hub name.

    Raises:
        PaftError: The data cannot be read, or have none of the known shapes.
    """
    sample = _sample(data, "--sft-data")
    if sample is None:
        return _unseen(data, {"type": "chat_template", "field_messages": "messages"})
    row = sample.rows[0].content
    entry = sft_entry(row)
    if entry.get("type") == "alpaca":
        fields = ("instruction", "input", "output")
        texts = [[ALPACA, *(str(row.content.get(key) or "") for key in fields)] for row in sample.rows]
        return Reading(_place(data) | entry, {"type": "rows have instruction and output"}, True, texts, sample.count)
    if entry.get("type") != "chat_template":
        raise PaftError(
            f"--sft-data: {data}: its rows have the fields {', '.join(row)}. `axolotl paft init` knows a list of messages, "
            f"and instruction with output. {sft_advice(row)} Bring them into one of these shapes, or write the config by hand."
        )
    name, names = entry["field_messages"], entry.get("message_property_mappings", {})
    why = {
        "type": f"rows have a list of messages in {name}",
        "message_property_mappings": "as the messages call them",
        "train_on_eos": "every answer learns to end",
    }
    entry |= {"roles_to_train": ["assistant"], "train_on_eos": "turn"}
    content = names.get("content", "content")
    texts = [[str(turn.get(content) or "") for turn in row.content.get(name) or []] for row in sample.rows]
    return Reading(_place(data) | entry, why, False, texts, sample.count)


def read_preference(data: str, rl: str) -> Reading:
    """How to read pairs under `rl`: a local path, or a hub name.

    Raises:
        PaftError: The data cannot be read, or have none of the shapes that axolotl's strategies read.
    """
    sample = _sample(data, "--preference-data")
    if sample is None:
        return _unseen(data, preference_entry({"prompt": "", "chosen": _PAIR, "rejected": _PAIR}, rl))
    row = sample.rows[0].content
    entry = preference_entry(row, rl) if {"chosen", "rejected"} <= row.keys() else {}
    if not entry:
        raise PaftError(f"--preference-data: {data}: {_no_pairs(row, rl)}")
    why = _WHY.get(entry["type"]) or f"the prompt is in {entry['field_messages']}"
    place = _place(data)
    if rl != "orpo":
        place.pop("ds_type", None)  # axolotl drops it for these strategies, and sees by the name what a file is
    texts = [_longest(row.content, entry.get("field_messages")) for row in sample.rows]
    return Reading(place | entry, {"type": why}, False, texts, sample.count)


_PAIR = [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}]
_WHY = {
    "chat_template.argilla": "chosen and rejected hold whole conversations",
    "chat_template.argilla_chat": "chosen and rejected hold whole conversations, and the prompt in them",
}


def _unseen(data: str, entry: dict[str, Any]) -> Reading:
    why = {"type": "not looked at, since it is on the hub: check type, fields and split", "split": "the usual name"}
    return Reading({"path": data, "split": "train"} | entry, why)


def _no_pairs(row: Mapping[str, Any], rl: str) -> str:
    """Why nothing reads such a row, and what to do."""
    fields = f"its rows have the fields {', '.join(row)}"
    if not {"chosen", "rejected"} <= row.keys():
        return f"{fields}, but not chosen and rejected. Rename the two answers so."
    if rl == "orpo":
        return (
            "for ORPO axolotl wants whole conversations in chosen and rejected, a list of the user's and the assistant's "
            "messages each. Write them so, or take --rl dpo."
        )
    return f"{fields}; none of them is the prompt. Name it prompt."


def _longest(row: Mapping[str, Any], prompt: str | None) -> list[str]:
    """The texts of a row with the longer of its two answers."""
    sides = [_texts(row["chosen"]), _texts(row["rejected"])]
    longer = max(sides, key=lambda texts: sum(map(len, texts)))
    return [*_texts(row.get(prompt)), longer[-1]] if prompt and longer else longer


def _texts(value: Any) -> list[str]:
    return [str(turn.get("content") or "") for turn in value] if is_conversation(value) else [str(value or "")]


def _place(data: str) -> dict[str, Any]:
    path = resolved(Path(data))
    kind = {".parquet": "parquet", ".csv": "csv", ".arrow": "arrow"}.get(path.suffix, "json")
    return {"path": str(path), **({"ds_type": kind} if path.is_file() else {}), "split": "train"}


def _sample(data: str, option: str) -> Sample | None:
    """Rows of local data; None for a hub name.

    Raises:
        PaftError: They cannot be read.
    """
    path = resolved(Path(data))
    entry = {"path": str(path)}
    files = local_files(entry)
    if not files:
        if path.exists():
            raise PaftError(f"{option}: {data} has no files that can be read ({', '.join(SUFFIXES)}).")
        if path.suffix in SUFFIXES or data.count("/") != 1 or data.startswith((".", "~")):
            raise PaftError(f"{option}: {data}: no such file. Check the path, or give a hub name like org/data.")
        return None
    sample = read_sample(entry, files)
    if sample.problems or not sample.rows:
        raise PaftError(
            [f"{option}: {problem}" for problem in sample.problems or [f"{data}: no rows can be looked at."]]
        )
    return sample
