"""Rows of the usual shapes."""

from __future__ import annotations


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


QUESTION, YES, NO = turn("user", "1 + 1?"), turn("assistant", "2"), turn("assistant", "3")
CHAT = {"messages": [QUESTION, YES]}
SHAREGPT = {"conversations": [{"from": "human", "value": "1 + 1?"}, {"from": "gpt", "value": "2"}]}
ALPACA = {"instruction": "1 + 1?", "input": "", "output": "2"}
PAIR = {"prompt": "1 + 1?", "chosen": "2", "rejected": "3"}
WHOLE = {"chosen": [QUESTION, YES], "rejected": [QUESTION, NO]}
KTO = {"prompt": "1 + 1?", "completion": "2", "label": True}
