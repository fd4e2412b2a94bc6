"""How rows of a data set can be read, judging by their fields: the keys of an axolotl `datasets` entry, and the same as advice.

What each type of axolotl 0.19 to 0.21 takes of a row is written down here; that it takes what we say is tested against axolotl.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paft_plugin.pipeline.preflight.row_texts import (
    CALLS,
    CONTENTS,
    ROLES,
    RowText,
    is_conversation,
    leaves,
    left_out,
)

Row = Mapping[str, Any]
PROMPTS = ("prompt", "question", "instruction", "input", "query")
INSTRUCTIONS = ("instruction", "prompt", "question", "query", "input")
CONVERSATIONS = ("messages", "conversations", "conversation")
ANSWERS = ("output", "response", "completion", "answer")
INPUTS = ("input", "context")
SYSTEMS = ("system", "system_prompt", "system_message")
SIDES = ("chosen", "rejected")
SPEAKERS = {
    "user": ("user", "human"),
    "assistant": ("assistant", "gpt", "model", "bot", "chatgpt", "function_call", "tool_call"),
    "system": ("system",),
    "tool": ("tool", "observation", "function_response", "tool_response", "ipython", "function"),
}
"""What data sets call a speaker."""
KNOWN = {"user", "human", "assistant", "gpt", "system", "tool"}
"""The speakers that axolotl knows by itself, in SFT."""
CHATML_TYPES = {"prompt": "chatml.prompt_pairs", "question": "chatml.intel", "input": "chatml.icr"}
"""axolotl's types that write a column `system` and this one in ChatML."""
ALPACA_FORMAT = {
    "format": "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
    "no_input_format": "### Instruction:\n{instruction}\n\n### Response:\n",
    "system_format": "{system}\n\n",
}


@dataclass(frozen=True)
class Way:
    """One way to read rows."""

    entry: dict[str, Any]
    columns: tuple[str, ...]
    """What it reads."""
    read: Callable[[Row], list[str] | None]
    """The texts that axolotl takes of a row; None if it cannot read the row."""

    def loses(self, row: Row) -> list[RowText]:
        """The texts of a row that it leaves out."""
        return left_out(row, self.columns, "\n".join(self.read(row) or []))


def best_way(ways: Sequence[Way], rows: Sequence[Row]) -> Way | None:
    """The first way that reads all rows and loses nothing of what is meant; else the one that loses least."""

    def cost(way: Way) -> int:
        return sum(text.meant for row in rows for text in way.loses(row))

    able = [way for way in ways if all(way.read(row) is not None for row in rows)]
    return min(able, key=cost, default=None)


# --- SFT ----------------------------------------------------------------------------------------------------------------


def sft_ways(rows: Sequence[Row], writes_tools: bool = True) -> list[Way]:
    """The ways to read such rows for SFT, with a chat template that writes tools and their calls, or not."""
    row = rows[0]
    names = [name for name in (*CONVERSATIONS, *row) if is_conversation(row.get(name))]
    ways = [_chat(name, rows, writes_tools) for name in dict.fromkeys(names)]
    ways += [
        _instruction(ask, answer, row) for ask in INSTRUCTIONS for answer in ANSWERS if {ask, answer} <= row.keys()
    ]
    return [
        *ways,
        *([Way({"type": "completion"}, ("text",), lambda row: _texts(row, "text"))] if "text" in row else []),
    ]


def _chat(name: str, rows: Sequence[Row], writes_tools: bool) -> Way:
    message = rows[0][name][0]
    role, content = (next((key for key in keys if key in message), keys[0]) for keys in (ROLES, CONTENTS))
    entry: dict[str, Any] = {"type": "chat_template", "field_messages": name}
    mapped = {"role": role, "content": content}
    messages = [each for row in rows if is_conversation(row.get(name)) for each in row[name]]
    if any(each.get("tool_calls") for each in messages):
        mapped["tool_calls"] = (
            "tool_calls"  # axolotl passes them on by itself only where the template says `message.tool_calls`
        )
    if mapped != {"role": "role", "content": "content"}:
        entry["message_property_mappings"] = mapped
    said = {str(each.get(role)) for each in messages}
    if said - KNOWN:
        entry["roles"] = {speaker: list(words) for speaker, words in SPEAKERS.items()}

    def read(row: Row) -> list[str] | None:
        if not is_conversation(row.get(name)):
            return None
        messages = row[name]
        texts = [text for each in messages for text in leaves(each.get(content))]
        if str(messages[0].get(role)) != "system":
            texts += leaves(row.get("system"))
        calls = [row.get("tools"), *(each.get(key) for each in messages for key in CALLS)] if writes_tools else []
        return [*texts, *leaves(calls)]

    return Way(entry, (name,), read)


def unknown_speakers(way: Way, rows: Sequence[Row]) -> list[str]:
    """The roles in a conversation that no data set that we know of has."""
    role = way.entry.get("message_property_mappings", {}).get("role", "role")
    said = {str(message.get(role)) for row in rows for message in row[way.columns[0]]}
    return sorted(said.difference(*SPEAKERS.values()))


def _instruction(ask: str, answer: str, row: Row) -> Way:
    more = next((name for name in INPUTS if name in row and name != ask), None)
    system = next((name for name in SYSTEMS if name in row), None)
    columns = tuple(name for name in (system, ask, more, answer) if name)
    entry: dict[str, Any] = {"type": "alpaca"}
    if (ask, more or "input", answer, system) != ("instruction", "input", "output", None):
        fields = {"field_instruction": ask, "field_input": more, "field_output": answer, "field_system": system}
        entry = {"type": {key: name for key, name in fields.items() if name} | ALPACA_FORMAT}
    return Way(entry, columns, lambda row: _texts(row, *columns))


def _texts(row: Row, *columns: str) -> list[str] | None:
    """The texts of columns; None if one holds no text."""
    values = [row.get(name) or "" for name in columns]
    return values if all(isinstance(value, str) for value in values) else None


def sft_advice(row: Row) -> str:
    """How the row could be read for SFT; empty if nothing is known."""
    return _looks_like(best_way(sft_ways([row]), [row]))


# --- preferences --------------------------------------------------------------------------------------------------------


def preference_ways(row: Row, rl: str) -> list[Way]:
    """The ways to read such a row with chosen and rejected under `rl`."""
    if not set(SIDES) <= row.keys():
        return []
    if rl == "orpo":
        return [Way({"type": "chat_template.argilla"}, SIDES, _read_by_argilla)]
    asked = [name for name in (*PROMPTS, *CONVERSATIONS) if name in row]
    ways = [_template_default(name) for name in asked]
    ways.append(Way({"type": "chat_template.argilla_chat"}, SIDES, _read_by_argilla_chat))
    ways += [_with_system(system, name) for system in SYSTEMS if system in row for name in PROMPTS if name in row]
    return ways


def _template_default(name: str) -> Way:
    def read(row: Row) -> list[str] | None:
        asked = row.get(name)
        prompt = [asked] if isinstance(asked, str) else _contents(asked, ("user", "tool"))
        answers = [_answer(row.get(side)) for side in SIDES]
        return None if prompt is None or None in answers else [*prompt, *map(str, answers)]

    return Way({"type": "chat_template.default", "field_messages": name}, (name, *SIDES), read)


def _read_by_argilla_chat(row: Row) -> list[str] | None:
    chosen, rejected = (_contents(row.get(side), ("assistant",)) for side in SIDES)
    return None if not chosen or not rejected or min(len(chosen), len(rejected)) < 2 else [*chosen, rejected[-1]]


def _read_by_argilla(row: Row) -> list[str] | None:
    """It puts a column `prompt` in the place of every question, and takes for granted who speaks when."""
    texts = _read_by_argilla_chat(row)
    if texts is None or [message["role"] for message in row["chosen"]] != ["user", "assistant"] * (len(texts) // 2):
        return None
    asked = row.get("prompt", texts[0])
    if not isinstance(asked, str):
        return None
    questions = [asked] if "prompt" in row else texts[:-1:2]
    return [*leaves(row.get("system")), *questions, *texts[1:-1:2], texts[-1]]


def _with_system(system: str, name: str) -> Way:
    entry = {"type": {"field_system": system, "field_prompt": name}}
    return Way(entry, (system, name, *SIDES), lambda row: _texts(row, system, name, *SIDES))


def _contents(value: Any, last: Sequence[str]) -> list[str] | None:
    """The texts of messages as axolotl's preference types read them, with one of these roles at the end."""
    if not is_conversation(value) or value[-1].get("role") not in last:
        return None
    contents = [message.get("content") for message in value if str(message.get("role")) in SPEAKERS]
    return contents if len(contents) == len(value) and all(isinstance(text, str) for text in contents) else None


def _answer(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    contents = _contents([value] if isinstance(value, Mapping) else value, ("assistant",))
    return contents[-1] if contents else None


def preference_advice(row: Row, rl: str) -> str:
    """How the row could be read under `rl`, or what it lacks; empty if nothing is known."""
    if rl == "kto":
        return (
            "KTO wants a prompt, a completion and a label; see its types chatml.* and llama3.*, or user-defined fields."
        )
    if not set(SIDES) <= row.keys():
        return "The row should have chosen and rejected, or its `type` name the fields (field_chosen, field_rejected)."
    way = best_way(preference_ways(row, rl), [row])
    if way is None or any(text.meant for text in way.loses(row)):
        return preference_remedy(rl)
    return _looks_like(way)


def preference_remedy(rl: str) -> str:
    """The shape that keeps everything."""
    if rl == "orpo":
        return (
            "ORPO's type chat_template.argilla wants whole conversations in chosen and rejected: a list of the user's and the "
            "assistant's messages in turn, {role: …, content: …}, and a system prompt in a column `system`."
        )
    return (
        "Write prompt as a list of messages, {role: …, content: …}, system prompt and earlier turns in it, and chosen and "
        "rejected as the answers alone."
    )


def _looks_like(way: Way | None) -> str:
    shown = [
        f"{key}: {value}".replace("'", "") for key, value in (way.entry if way else {}).items() if value != "messages"
    ]
    return f"This row looks like {', '.join(shown)}." if shown else ""


def in_columns(found: Sequence[RowText]) -> Iterator[tuple[str, str]]:
    """Each place once, with the beginning of its first text."""
    seen = set()
    for text in found:
        if text.place not in seen:
            seen.add(text.place)
            shown = " ".join(text.text.split())
            yield text.place, shown if len(shown) <= 40 else f"{shown[:40]}…"
