"""Rows in the shapes of the most used public data sets: `init` keeps every text that an answer depends on, or says what it cannot
keep; and preflight finds what a config leaves out, by axolotl's own reading.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from paft_plugin.errors import PaftError
from paft_plugin.pipeline.arms import resolve
from paft_plugin.pipeline.config import read_config
from paft_plugin.pipeline.preflight import preflight
from paft_plugin.pipeline.preflight.row_texts import is_missing, letters
from paft_plugin.pipeline.starter import Wish, write_starter
from tests.axolotl_configs.stand_ins import Base, make_tokenizer
from tests.pipeline.rows import CHAT, PAIR

Rows = Callable[[int], dict[str, Any]]
CHATML = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
    "{% if m.tool_calls %}{% for call in m.tool_calls %}{{ call.function | tojson }}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def u(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def a(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def s(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def pair(*before: dict[str, Any], i: int) -> dict[str, Any]:
    return {"chosen": [*before, a(f"wanted {i}")], "rejected": [*before, a(f"unwanted {i}")]}


CALL = [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}]
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Tells the weather", "parameters": {}}}]
HISTORY = (u("List two colours"), a("red, blue"))

# Shape → rows, `rl`, and the type that keeps everything, or words of the refusal.
PREFERENCES: dict[str, tuple[Rows, str, Any]] = {
    "HuggingFaceH4/ultrafeedback_binarized": (
        lambda i: {
            **pair(u(f"Ask {i}"), i=i),
            "prompt": f"Ask {i}",
            "prompt_id": f"{i:064x}",
            "messages": [u(f"Ask {i}"), a(f"wanted {i}")],
            "score_chosen": 8.0,
        },
        "dpo",
        "chat_template.default",
    ),
    "argilla/ultrafeedback-binarized-preferences-cleaned": (
        lambda i: {
            "source": "evol",
            "prompt": f"Ask {i}",
            **pair(u(f"Ask {i}"), i=i),
            "chosen-model": "gpt-4",
            "chosen-rating": 5,
        },
        "dpo",
        "chat_template.default",
    ),
    "HuggingFaceH4/orca_dpo_pairs": (
        lambda i: {"system": f"Be {i}", "question": f"Ask {i}", **pair(s(f"Be {i}"), u(f"Ask {i}"), i=i)},
        "dpo",
        "chat_template.argilla_chat",
    ),
    "Intel/orca_dpo_pairs": (
        lambda i: {
            "system": f"Be {i}" if i else "",
            "question": f"Ask {i}",
            "chosen": f"yes {i}",
            "rejected": f"no {i}",
        },
        "dpo",
        "chatml.intel",
    ),
    "argilla/distilabel-intel-orca-dpo-pairs": (
        lambda i: {
            "system": f"Be {i}",
            "input": f"Ask {i}",
            "chosen": f"yes {i}",
            "rejected": f"no {i}",
            "generations": [f"yes {i}", f"no {i}"],
            "labelling_prompt": [s("Judge them"), u(f"Which is better {i}")],
            "rating": [9.0, 7.0],
            "status": "unchanged",
        },
        "simpo",
        "chatml.icr",
    ),
    "a system prompt in another column": (
        lambda i: {"system_prompt": f"Be {i}", "prompt": f"Ask {i}", "chosen": f"{{yes}} {i}", "rejected": f"no {i}"},
        "dpo",
        {"field_system": "system_prompt"},
    ),
    "argilla/dpo-mix-7k": (
        lambda i: {"dataset": "x", **pair(*HISTORY, u(f"More {i}"), i=i)},
        "dpo",
        "chat_template.argilla_chat",
    ),
    "argilla/distilabel-capybara-dpo-7k-binarized": (
        lambda i: {
            "source": "Airoboros",
            "conversation": [
                {"input": "List two colours", "output": "red, blue"},
                {"input": f"More {i}", "output": f"yellow {i}"},
            ],
            "prompt": f"More {i}",
            **pair(*HISTORY, u(f"More {i}"), i=i),
            "rating_chosen": 5,
        },
        "dpo",
        "chat_template.argilla_chat",
    ),
    "LLaMA-Factory alpaca": (
        lambda i: {
            "instruction": f"Translate {i}",
            "input": f"the text {i}",
            "chosen": f"yes {i}",
            "rejected": f"no {i}",
        },
        "dpo",
        "input ('the text 0')",
    ),
    "LLaMA-Factory alpaca without input": (
        lambda i: {"instruction": f"Name {i}", "input": "", "chosen": f"yes {i}", "rejected": f"no {i}"},
        "dpo",
        "chat_template.default",
    ),
    "LLaMA-Factory sharegpt": (
        lambda i: {
            "conversations": [{"from": "human", "value": f"Ask {i}"}],
            "chosen": {"from": "gpt", "value": f"yes {i}"},
            "rejected": {"from": "gpt", "value": f"no {i}"},
        },
        "dpo",
        "read no prompt from them",
    ),
    "TRL, prompt as messages": (
        lambda i: {"prompt": [s("Be kind"), u(f"Ask {i}")], "chosen": [a(f"yes {i}")], "rejected": [a(f"no {i}")]},
        "dpo",
        "chat_template.default",
    ),
    "TRL, prompt in the answers": (
        lambda i: pair(s("Be kind"), u(f"Ask {i}"), i=i),
        "dpo",
        "chat_template.argilla_chat",
    ),
    "with calls of tools": (
        lambda i: {
            "messages": [u(f"Weather {i}?"), {**a(""), "tool_calls": CALL}, {"role": "tool", "content": "sunny"}],
            "chosen": a(f"yes {i}"),
            "rejected": a(f"no {i}"),
        },
        "dpo",
        "messages (tool_calls)",
    ),
    "with tools": (
        lambda i: {**PAIR, "prompt": f"Weather {i}", "tools": TOOLS},
        "dpo",
        "tools ('weather Tells the weather')",
    ),
    "Anthropic/hh-rlhf": (
        lambda i: {
            "chosen": f"\n\nHuman: Ask {i}\n\nAssistant: yes",
            "rejected": f"\n\nHuman: Ask {i}\n\nAssistant: no",
        },
        "dpo",
        "read no prompt from them",
    ),
    "nvidia/HelpSteer2, pairs": (
        lambda i: {"prompt": f"Ask {i}", "response_1": f"yes {i}", "response_2": f"no {i}", "preference_strength": 1},
        "dpo",
        "not chosen and rejected",
    ),
    "conversations that part before the last answer": (
        lambda i: {
            "chosen": [u(f"Ask {i}"), a("first wanted"), u("thanks"), a(f"welcome {i}")],
            "rejected": [u(f"Ask {i}"), a("other answer"), u("wrong"), a(f"sorry {i}")],
        },
        "dpo",
        "rejected (assistant) ('other answer')",
    ),
    "ORPO, a system message": (lambda i: pair(s(f"Be {i}"), u(f"Ask {i}"), i=i), "orpo", "a column `system`"),
    "ORPO, a system column": (
        lambda i: {"system": f"Be {i}", **pair(u(f"Ask {i}"), i=i)},
        "orpo",
        "chat_template.argilla",
    ),
    "ORPO, history": (lambda i: pair(*HISTORY, u(f"More {i}"), i=i), "orpo", "chat_template.argilla"),
    "ORPO, history and the last question in prompt": (
        lambda i: {"prompt": f"More {i}", **pair(*HISTORY, u(f"More {i}"), i=i)},
        "orpo",
        "chosen (user) ('List two colours')",
    ),
}
SFT: dict[str, tuple[Rows, Any]] = {
    "sharegpt": (
        lambda i: {
            "conversations": [{"from": who, "value": f"{who} {i}"} for who in ("system", "human", "gpt")],
            "id": f"r{i}",
        },
        "chat_template",
    ),
    "sharegpt, the system prompt beside": (
        lambda i: {
            "system": f"Be {i}",
            "conversations": [{"from": who, "value": f"{who} {i}"} for who in ("human", "gpt")],
        },
        "chat_template",
    ),
    "LLaMA-Factory sharegpt with tools": (
        lambda i: {
            "conversations": [
                {"from": "human", "value": f"Weather {i}?"},
                {"from": "function_call", "value": f'{{"name": "weather{i}"}}'},
                {"from": "observation", "value": "sunny"},
                {"from": "gpt", "value": f"It is sunny {i}"},
            ],
            "tools": json.dumps(TOOLS),
        },
        "chat_template",
    ),
    "nobody knows who speaks": (
        lambda i: {"messages": [u(f"Ask {i}"), {"role": "oracle", "content": "so"}]},
        "messages by oracle",
    ),
    "OpenAI messages with tools": (
        lambda i: {
            "messages": [
                u(f"Weather {i}?"),
                {"role": "assistant", "content": None, "tool_calls": CALL},
                {"role": "tool", "content": "sunny", "tool_call_id": "c1"},
                a(f"It is sunny {i}"),
            ],
            "tools": TOOLS,
        },
        "chat_template",
    ),
    "parts": (
        lambda i: {
            "messages": [
                {**each, "content": [{"type": "text", "text": each["content"]}]} for each in (u(f"q{i}"), a("yes"))
            ]
        },
        "chat_template",
    ),
    "Gemini's names": (
        lambda i: {"contents": [{"role": "user", "text": f"Ask {i}"}, {"role": "model", "text": f"Told {i}"}]},
        "chat_template",
    ),
    "UltraFeedback, for SFT": (
        lambda i: {**pair(u(f"Ask {i}"), i=i), "prompt": f"Ask {i}", "messages": [u(f"Ask {i}"), a(f"wanted {i}")]},
        "chat_template",
    ),
    "alpaca": (lambda i: {"instruction": f"Translate {i}", "input": f"text {i}", "output": f"Text {i}"}, "alpaca"),
    "alpaca with system": (
        lambda i: {"system": f"Be {i}", "instruction": f"Translate {i}", "input": "", "output": f"Text {i}"},
        {"field_system": "system"},
    ),
    "alpaca with history": (
        lambda i: {"instruction": f"Go on {i}", "input": "", "output": f"Text {i}", "history": [["earlier", "answer"]]},
        "history ('earlier answer')",
    ),
    "prompt and completion": (
        lambda i: {"prompt": f"Ask {i}", "completion": f"Told {i}"},
        {"field_instruction": "prompt", "field_output": "completion"},
    ),
    "nvidia/HelpSteer": (
        lambda i: {"prompt": f"Ask {i}", "response": f"Told {i}", "helpfulness": 4},
        {"field_output": "response"},
    ),
    "Open-Orca/OpenOrca": (
        lambda i: {"id": f"x{i}", "system_prompt": f"Be {i}", "question": f"Ask {i}", "response": f"Told {i}"},
        {"field_system": "system_prompt"},
    ),
    "databricks/dolly": (
        lambda i: {"instruction": f"Sum {i}", "context": f"text {i}", "response": f"Told {i}", "category": "qa"},
        {"field_input": "context"},
    ),
    "LDJnr/Capybara": (
        lambda i: {"source": "x", "conversation": [{"input": f"Ask {i}", "output": f"Told {i}"}]},
        "conversation ('Ask",
    ),
}


@pytest.fixture(scope="module")
def chatml(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that speaks ChatML, as far as `init` and preflight look at one."""
    folder = tmp_path_factory.mktemp("chatml") / "base"
    words = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    make_tokenizer(Base("qwen2", words, None, "<|im_end|>", "<|endoftext|>", CHATML)).save_pretrained(folder)
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((demo / "base" / name).read_bytes())
    return folder


def entry(base: Path, folder: Path, name: str, rows: Rows, rl: Any = None) -> dict[str, Any]:
    """What `init` writes as the data set for rows of a shape; `rl`: as preferences."""
    folder.mkdir(exist_ok=True)
    files = {"sft": folder / f"{len(list(folder.iterdir()))}.jsonl", "preference": folder / "other.jsonl"}
    mine, other = ("preference", "sft") if rl else ("sft", "preference")
    files[mine] = folder / f"{letters(name)}{rl}.jsonl"
    files[mine].write_text("".join(json.dumps(rows(i)) + "\n" for i in range(6)), encoding="utf-8")
    files[other].write_text((json.dumps(CHAT if other == "sft" else PAIR) + "\n") * 6, encoding="utf-8")
    wish = Wish(str(base), str(files["sft"]), str(files["preference"]), folder / "written", "lora", rl or "dpo")
    write_starter(wish, gpu=False, force=True)
    content = yaml.safe_load((folder / "written" / f"{mine}.yml").read_text(encoding="utf-8"))
    return dict(content["datasets"][0])


@pytest.mark.parametrize("name", PREFERENCES)
def test_preferences_keep_their_texts_or_are_refused(chatml: Path, tmp_path: Path, name: str) -> None:
    rows, rl, expected = PREFERENCES[name]
    outcome(chatml, tmp_path, name, rows, expected, rl)


@pytest.mark.parametrize("name", SFT)
def test_sft_rows_keep_their_texts_or_are_refused(chatml: Path, tmp_path: Path, name: str) -> None:
    rows, expected = SFT[name]
    outcome(chatml, tmp_path, name, rows, expected)


def taken(expected: Any) -> bool:
    """Whether that is a type, not a refusal."""
    return not isinstance(expected, str) or expected.startswith(("chat", "alpaca"))


def outcome(base: Path, folder: Path, name: str, rows: Rows, expected: Any, rl: Any = None) -> None:
    if not taken(expected):
        with pytest.raises(PaftError) as raised:
            entry(base, folder, name, rows, rl)
        assert expected in str(raised.value)
        return
    kind = entry(base, folder, name, rows, rl)["type"]
    assert kind == expected if isinstance(expected, str) else kind.items() >= expected.items()


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("rl", ["dpo", "orpo"])
def test_axolotl_takes_of_the_rows_what_init_believes(chatml: Path, tmp_path: Path, rl: str) -> None:
    """All the shapes that are taken, as the data sets of one config each: preflight decodes what axolotl makes of them."""
    shapes = [
        (name, rows)
        for name, (rows, of, kind) in PREFERENCES.items()
        if taken(kind) and (of == "orpo") == (rl == "orpo")
    ]
    pairs = [entry(chatml, tmp_path / "p", name, rows, rl) for name, rows in shapes]
    chats = (
        [entry(chatml, tmp_path / "s", name, rows) for name, (rows, kind) in SFT.items() if taken(kind)]
        if rl == "dpo"
        else []
    )
    found = found_in(chatml, tmp_path, pairs, chats, rl)
    assert "\n".join(problem for problem in found.problems if "datasets[" in problem) == ""
    said = [warning for warning in found.warnings if "left out of what is trained on" in warning]
    assert len(said) == (3 if rl == "dpo" else 0), said  # ids, sources and names are no texts
    if rl == "dpo":
        assert "labelling_prompt (system) ('Judge them'), labelling_prompt (user)" in " ".join(said)
        assert "rejected (assistant) ('unwanted 0')" in " ".join(said)
        trained = [warning for warning in found.warnings if "does not know who that is" in warning]
        assert trained == []


def found_in(
    base: Path, folder: Path, pairs: list[dict[str, Any]], chats: list[dict[str, Any]], rl: str = "dpo"
) -> Any:
    """What preflight finds when these data sets are trained on."""
    entry(base, folder / "start", "start", lambda i: {**pair(u(f"Ask {i}"), i=i)}, rl)
    written = folder / "start" / "written"
    for name, datasets in (("preference", pairs), ("sft", chats)):
        content = yaml.safe_load((written / f"{name}.yml").read_text(encoding="utf-8"))
        content |= {"datasets": datasets or content["datasets"], "sequence_len": 1024, "val_set_size": 0}
        (written / f"{name}.yml").write_text(yaml.safe_dump(content), encoding="utf-8")
    config = read_config(written / "paft.yml")
    return preflight(resolve(config, written / "paft.yml", Path(config.base)))


# Shape, the entry that somebody wrote by hand, and what it leaves out.
BY_HAND: list[tuple[str, dict[str, Any], str]] = [
    (
        "HuggingFaceH4/orca_dpo_pairs",
        {"type": "chat_template.default", "field_messages": "question"},
        "system ('Be 0')",
    ),
    ("Intel/orca_dpo_pairs", {"type": "chat_template.default", "field_messages": "question"}, "system ('Be 1')"),
    ("argilla/dpo-mix-7k", {"type": "chatml.argilla_chat"}, "chosen (user) ('More 0')"),
    (
        "argilla/distilabel-capybara-dpo-7k-binarized",
        {"type": "chat_template.default", "field_messages": "prompt"},
        "chosen (user) ('List two colours')",
    ),
    (
        "LLaMA-Factory alpaca",
        {"type": "chat_template.default", "field_messages": "instruction"},
        "input ('the text 0')",
    ),
    ("with calls of tools", {"type": "chat_template.default"}, "messages (tool_calls) ('weather"),
    (
        "conversations that part before the last answer",
        {"type": "chat_template.argilla_chat"},
        "rejected (assistant) ('other answer')",
    ),
]


@pytest.mark.usefixtures("forked")
def test_preflight_says_what_a_config_by_hand_leaves_out(chatml: Path, tmp_path: Path) -> None:
    pairs, chats = [], []
    for name, keys, _ in BY_HAND:
        file = tmp_path / f"{letters(name)}.jsonl"
        file.write_text("".join(json.dumps(PREFERENCES[name][0](i)) + "\n" for i in range(6)), encoding="utf-8")
        pairs.append({"path": str(file), "split": "train", **keys})
    for name, kind in (("alpaca with history", "alpaca"), ("LLaMA-Factory sharegpt with tools", "chat_template")):
        file = tmp_path / f"{letters(name)}.jsonl"
        file.write_text("".join(json.dumps(SFT[name][0](i)) + "\n" for i in range(6)), encoding="utf-8")
        keys = {"field_messages": "conversations", "message_property_mappings": {"role": "from", "content": "value"}}
        chats.append(
            {"path": str(file), "ds_type": "json", "split": "train", "type": kind, **(keys if kind != "alpaca" else {})}
        )
    found = found_in(chatml, tmp_path, pairs, chats)
    for index, (_, _, words) in enumerate(BY_HAND):
        mine = [problem for problem in found.problems if f"preference.yml: datasets[{index}]" in problem]
        assert any(words in problem and "neither in the prompt nor in an answer" in problem for problem in mine), (
            words,
            mine,
        )
    assert any(
        "sft.yml: datasets[0]" in problem and "history ('earlier answer')" in problem for problem in found.problems
    )
    assert any("messages by function_call, observation" in warning for warning in found.warnings)


def test_a_text_is_missing_when_a_good_part_of_it_is() -> None:
    whole = 'Be brief. Answer in French.\nNever say "no".'
    assert not is_missing(whole, letters(f"<s>{json.dumps(whole)}</s>"))
    assert not is_missing("  ...  ", "")
    assert is_missing(whole, letters("Be brief."))
