"""How the rows of a data set are to be read, judging by their fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paft_plugin.errors import PaftError
from paft_plugin.pipeline.preflight.data_files import SUFFIXES, Sample, local_files, read_sample
from paft_plugin.pipeline.preflight.shape import is_conversation, sft_advice

ROLES = ("role", "from", "speaker")
CONTENTS = ("content", "value", "text")
PROMPTS = ("prompt", "question", "instruction", "input")

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
        entry = {"path": data, "split": "train", "type": "chat_template", "field_messages": "messages"}
        return Reading(entry, {"type": "not looked at, since it is on the hub: check type, fields and split", **_SPLIT})
    row = sample.rows[0].content
    common = _entry(data)
    name = next((key for key, value in row.items() if is_conversation(value)), None)
    if name is not None:
        return _chat(sample, common, name, row[name][0])
    if {"instruction", "output"} <= row.keys():
        fields = ("instruction", "input", "output")
        texts = [[ALPACA, *(str(row.content.get(key) or "") for key in fields)] for row in sample.rows]
        return Reading(
            {**common, "type": "alpaca"}, {"type": "rows have instruction and output"}, True, texts, sample.count
        )
    raise PaftError(
        f"--sft-data: {data}: its rows have the fields {', '.join(row)}. `axolotl paft init` knows a list of messages, and "
        f"instruction with output. {sft_advice(row)} Bring them into one of these shapes, or write the config by hand."
    )


def _chat(sample: Sample, common: dict[str, Any], name: str, message: Mapping[str, Any]) -> Reading:
    role = next((key for key in ROLES if key in message), "role")
    content = next((key for key in CONTENTS if key in message), "content")
    entry = {**common, "type": "chat_template", "field_messages": name}
    why = {"type": f"rows have a list of messages in {name}"}
    if (role, content) != ("role", "content"):
        entry["message_property_mappings"] = {"role": role, "content": content}
        why["message_property_mappings"] = "as the messages call them"
    entry |= {"roles_to_train": ["assistant"], "train_on_eos": "turn"}
    why["train_on_eos"] = "every answer learns to end"
    texts = [[str(turn.get(content) or "") for turn in row.content.get(name) or []] for row in sample.rows]
    return Reading(entry, why, False, texts, sample.count)


def read_preference(data: str, rl: str) -> Reading:
    """How to read pairs under `rl`: a local path, or a hub name.

    Raises:
        PaftError: The data cannot be read, or have none of the shapes that axolotl's strategies read.
    """
    sample = _sample(data, "--preference-data")
    if sample is None:
        entry = {
            "path": data,
            "split": "train",
            **_pairs(rl, {"prompt": "", "chosen": _PAIR, "rejected": _PAIR}, data)[0],
        }
        return Reading(entry, {"type": "not looked at, since it is on the hub: check type, fields and split", **_SPLIT})
    entry, why = _pairs(rl, sample.rows[0].content, data)
    common = _entry(data)
    if rl != "orpo":
        common.pop("ds_type", None)  # axolotl drops it for these strategies, and sees by the name what a file is
    texts = [_longest(row.content, entry.get("field_messages")) for row in sample.rows]
    return Reading({**common, **entry}, {"type": why}, False, texts, sample.count)


_PAIR = [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}]
_SPLIT = {"split": "the usual name"}


def _pairs(rl: str, row: Mapping[str, Any], data: str) -> tuple[dict[str, Any], str]:
    """The type that reads such a row, and why."""
    if not {"chosen", "rejected"} <= row.keys():
        raise PaftError(
            f"--preference-data: {data}: its rows have the fields {', '.join(row)}, but not chosen and rejected. Rename the "
            "two answers so."
        )
    whole = all(is_conversation(row[key]) and len(row[key]) > 1 for key in ("chosen", "rejected"))
    if rl == "orpo":
        if not whole:
            raise PaftError(
                f"--preference-data: {data}: for ORPO axolotl wants whole conversations in chosen and rejected, a list of the "
                "user's and the assistant's messages each. Write them so, or take --rl dpo."
            )
        return {"type": "chat_template.argilla"}, "chosen and rejected hold whole conversations"
    asked = next((key for key in PROMPTS if row.get(key) is not None and isinstance(row[key], str)), None)
    named = [key for key, value in row.items() if key not in ("chosen", "rejected") and _is_question(value)]
    prompt = named[0] if named else asked
    if prompt is not None:
        return {"type": "chat_template.default", "field_messages": prompt}, f"the prompt is in {prompt}"
    if whole:
        return {
            "type": "chat_template.argilla_chat"
        }, "chosen and rejected hold whole conversations, and the prompt in them"
    raise PaftError(
        f"--preference-data: {data}: its rows have the fields {', '.join(row)}; none of them is the prompt. Name it prompt."
    )


def _is_question(value: Any) -> bool:
    """Messages that end before an answer; a column with the chosen answer in it would give it away."""
    return is_conversation(value) and str(value[-1].get("role")) == "user"


def _longest(row: Mapping[str, Any], prompt: str | None) -> list[str]:
    """The texts of a row with the longer of its two answers."""
    sides = [_texts(row["chosen"]), _texts(row["rejected"])]
    longer = max(sides, key=lambda texts: sum(map(len, texts)))
    return [*_texts(row.get(prompt)), longer[-1]] if prompt and longer else longer


def _texts(value: Any) -> list[str]:
    return [str(turn.get("content") or "") for turn in value] if is_conversation(value) else [str(value or "")]


def _entry(data: str) -> dict[str, Any]:
    path = Path(data).expanduser().resolve()
    kind = {".parquet": "parquet", ".csv": "csv", ".arrow": "arrow"}.get(path.suffix, "json")
    return {"path": str(path), **({"ds_type": kind, "split": "train"} if path.is_file() else {"split": "train"})}


def _sample(data: str, option: str) -> Sample | None:
    """Rows of local data; None for a hub name.

    Raises:
        PaftError: They cannot be read.
    """
    path = Path(data).expanduser()
    entry = {"path": str(path.resolve())}
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
