"""How the rows of a data set are to be read, judging by their fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paft_plugin.errors import PaftError, some
from paft_plugin.files import resolved
from paft_plugin.pipeline.preflight.data_files import SUFFIXES, Sample, local_files, read_sample
from paft_plugin.pipeline.preflight.row_types import (
    Way,
    best_way,
    in_columns,
    preference_remedy,
    preference_ways,
    sft_advice,
    sft_ways,
    unknown_speakers,
)

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


def read_sft(data: str, template: str | None, given_as: str = "--sft-data") -> Reading:
    """How to read SFT data, a local path or a hub name, for a base with this chat template (None: not known).

    Messages say where it was `given_as` that.

    Raises:
        PaftError: The data cannot be read, have none of the known shapes, or would lose something that matters.
    """
    sample = _sample(data, given_as)
    if sample is None:
        return _unseen(data, {"type": "chat_template", "field_messages": "messages"})
    rows = [row.content for row in sample.rows]
    ways = [way for way in sft_ways(rows, template is None or "tool" in template) if way.entry["type"] != "completion"]
    where = f"{given_as}: {data}"
    if not ways:
        raise PaftError(
            f"{where}: its rows have the fields {', '.join(rows[0])}. `axolotl paft init` knows a list of messages, and an "
            f"instruction or prompt with its output. {sft_advice(rows[0])} Bring them into one of these shapes, or write the "
            "config by hand."
        )
    way = _chosen_way(ways, sample, where, _SFT_REMEDY)
    entry, out = way.entry, _left_out(way, rows)
    texts = [way.read(row) or [] for row in rows]
    if entry["type"] != "chat_template":
        said = f"rows have {' and '.join(way.columns)}{out}"
        return Reading(_place(data) | entry, {"type": said}, True, [[ALPACA, *each] for each in texts], sample.count)
    if unknown := unknown_speakers(way, rows):
        raise PaftError(
            f"{where}: {way.columns[0]} has messages by {some(unknown)}, and nobody knows who that is. Call the speakers "
            "user, assistant, system and tool."
        )
    why = {
        "type": f"rows have a list of messages in {way.columns[0]}{out}",
        "message_property_mappings": "as the messages call them",
        "roles": "who the speakers are; what an assistant calls, it learns to call",
        "train_on_eos": "every answer learns to end",
    }
    entry = entry | {"roles_to_train": ["assistant"], "train_on_eos": "turn"}
    return Reading(_place(data) | entry, why, False, texts, sample.count)


def read_preference(data: str, rl: str, with_system: Callable[[dict[str, Any]], dict[str, Any]]) -> Reading:
    """How to read pairs under `rl`: a local path, or a hub name; `with_system` completes a type that writes a system prompt.

    Raises:
        PaftError: The data cannot be read, have none of the shapes that axolotl's strategies read, or would lose something.
    """
    sample = _sample(data, "--preference-data")
    if sample is None:
        return _unseen(data, preference_ways({"prompt": "", "chosen": _PAIR, "rejected": _PAIR}, rl)[0].entry)
    rows = [row.content for row in sample.rows]
    where = f"--preference-data: {data}"
    if not (ways := [way for way in preference_ways(rows[0], rl) if way.read(rows[0]) is not None]):
        raise PaftError(f"{where}: {_no_pairs(rows[0], rl)}")
    way = _chosen_way(ways, sample, where, preference_remedy(rl))
    entry = way.entry if isinstance(way.entry["type"], str) else with_system(way.entry["type"])
    why = _WHY.get(str(entry["type"]), f"the prompt is in {' and '.join(way.columns[:-2])}")
    place = _place(data)
    if rl != "orpo":
        place.pop("ds_type", None)  # axolotl drops it for these strategies, and sees by the name what a file is
    read = [way.read(row) or ["", ""] for row in rows]
    texts = [[*each[:-2], max(each[-2:], key=len)] for each in read]
    return Reading(place | entry, {"type": f"{why}{_left_out(way, rows)}"}, False, texts, sample.count)


_PAIR = [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}]
_WHY = {
    "chat_template.argilla": "chosen and rejected hold whole conversations",
    "chat_template.argilla_chat": "chosen and rejected hold whole conversations, and the prompt in them",
}
_SFT_REMEDY = (
    "Write each row as messages, a list of {role: …, content: …}, everything in it that the answers depend on; tools and their "
    "calls need a base whose chat template writes them."
)


def _chosen_way(ways: Sequence[Way], sample: Sample, where: str, remedy: str) -> Way:
    """The way that loses nothing.

    Raises:
        PaftError: There is none; says what the best one would lose.
    """
    way = best_way(ways, [row.content for row in sample.rows])
    if way is None:
        row = next((row for row in sample.rows if ways[0].read(row.content) is None), sample.rows[0])
        raise PaftError(f"{where}: {row.place}: is not of the shape of the first row. {remedy}")
    lost = {
        row.place: texts for row in sample.rows if (texts := [text for text in way.loses(row.content) if text.meant])
    }
    if lost:
        place, texts = next(iter(lost.items()))
        named = some([f"{column} ({shown!r})" for column, shown in in_columns(texts)])
        raise PaftError(
            f"{where}: {place}: nothing of axolotl's reads {named} beside the rest, so that it would be left out of "
            f"{len(lost)} of {len(sample.rows)} rows looked at. {remedy} If it is to be left out, remove it from the data."
        )
    return way


def _left_out(way: Way, rows: Sequence[Mapping[str, Any]]) -> str:
    """The columns that are not read, for a comment."""
    names = [place for place, _ in in_columns([text for row in rows for text in way.loses(row)])]
    return f"; left out: {some(names, 5)}" if names else ""


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
            "messages in turn. Write them so, the system prompt in a column `system`, or take --rl dpo."
        )
    return f"{fields}; axolotl's types read no prompt from them. {preference_remedy(rl)}"


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
