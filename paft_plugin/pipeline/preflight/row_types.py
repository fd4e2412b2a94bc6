"""How a row of a data set can be read, judging by its fields: the keys of an axolotl `datasets` entry, and the same as advice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ROLES = ("role", "from", "speaker")
CONTENTS = ("content", "value", "text")
PROMPTS = ("prompt", "question", "instruction", "input")


def is_conversation(value: Any) -> bool:
    """A list of messages."""
    return isinstance(value, list) and bool(value) and all(isinstance(message, Mapping) for message in value)


def sft_entry(row: Mapping[str, Any]) -> dict[str, Any]:
    """What reads such a row for SFT; empty if none of the known types does."""
    for name, value in row.items():
        if is_conversation(value):
            entry: dict[str, Any] = {"type": "chat_template", "field_messages": name}
            role, content = (next((key for key in keys if key in value[0]), keys[0]) for keys in (ROLES, CONTENTS))
            if (role, content) != ("role", "content"):
                entry["message_property_mappings"] = {"role": role, "content": content}
            return entry
    if {"instruction", "output"} <= row.keys():
        return {"type": "alpaca"}
    return {"type": "completion"} if "text" in row else {}


def preference_entry(row: Mapping[str, Any], rl: str) -> dict[str, Any]:
    """What reads such a row with chosen and rejected under `rl`; empty if none of the known types does."""
    whole = has_whole_conversations(row)
    if rl == "orpo":
        return {"type": "chat_template.argilla"} if whole else {}
    asked = [key for key, value in row.items() if key not in ("chosen", "rejected") and _is_question(value)]
    asked += [key for key in PROMPTS if isinstance(row.get(key), str)]
    if asked:
        return {"type": "chat_template.default", "field_messages": asked[0]}
    return {"type": "chat_template.argilla_chat"} if whole else {}


def has_whole_conversations(row: Mapping[str, Any]) -> bool:
    """Whether chosen and rejected each hold what was asked, too."""
    return all(is_conversation(row[key]) and len(row[key]) > 1 for key in ("chosen", "rejected"))


def _is_question(value: Any) -> bool:
    """Messages that end before an answer; a column with the chosen answer in it would give it away."""
    return is_conversation(value) and str(value[-1].get("role")) == "user"


def sft_advice(row: Mapping[str, Any]) -> str:
    """How the row could be read for SFT; empty if nothing is known."""
    return _looks_like(sft_entry(row))


def preference_advice(row: Mapping[str, Any], rl: str) -> str:
    """How the row could be read under `rl`, or what it lacks; empty if nothing is known."""
    if rl == "kto":
        return (
            "KTO wants a prompt, a completion and a label; see its types chatml.* and llama3.*, or user-defined fields."
        )
    if not {"chosen", "rejected"} <= row.keys():
        return "The row should have chosen and rejected, or its `type` name the fields (field_chosen, field_rejected)."
    if rl == "orpo" and not has_whole_conversations(row):
        return (
            "ORPO's type chat_template.argilla wants whole conversations in chosen and rejected: a list of the user's and the "
            "assistant's messages each, {role: …, content: …}."
        )
    return _looks_like(preference_entry(row, rl))


def _looks_like(entry: Mapping[str, Any]) -> str:
    shown = [f"{key}: {value}".replace("'", "") for key, value in entry.items() if value != "messages"]
    return f"This row looks like {', '.join(shown)}." if shown else ""
