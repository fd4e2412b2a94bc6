"""What differs between a branch's tokenizer and its base's, and whether that matters: a fused model gets the base's.

Reads the files that transformers saves (`tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja` …) and no others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paft_plugin.errors import Findings, as_written, some
from paft_plugin.files import read_json
from paft_plugin.reading import read_bytes, read_text

# How text becomes tokens, beside the vocabulary. `truncation` and `padding` are left out: whatever a training run used last.
RULES = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
OTHER_VOCABULARIES = ("tokenizer.model", "vocab.json", "vocab.txt", "merges.txt")
VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model")
"""What mergekit looks for where it wants a tokenizer."""
TOKENIZER_FILES = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "chat_template*",
    "added_tokens.json",
)
"""Patterns of all that transformers keeps of a tokenizer."""


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer as its files describe it."""

    folder: Path
    tokens: dict[int, str]
    """Id → token; empty if the vocabulary is not kept as JSON."""
    added: frozenset[int]
    """Ids of the tokens that were added to the vocabulary, reserved ones among them."""
    rules: dict[str, Any]
    """What splits text: name → content, for comparison only."""
    special: dict[str, str | None] = field(default_factory=dict)
    template: Any = None
    """Chat template: text, or several by name; None without one."""


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer in a folder; None if there is none, `PaftError` if one of its files is broken."""
    with as_written(f"{folder}: a file of its tokenizer", "Copy or save them again."):
        return _read(folder)


def _read(folder: Path) -> Tokenizer | None:
    main = folder / "tokenizer.json"
    others = {name: read_bytes(folder / name) for name in OTHER_VOCABULARIES if (folder / name).is_file()}
    if not main.is_file() and not others:
        return None
    config_file, map_file = folder / "tokenizer_config.json", folder / "special_tokens_map.json"
    config = read_json(config_file) if config_file.is_file() else {}
    special = (read_json(map_file) if map_file.is_file() else {}) | config
    template_file = folder / "chat_template.jinja"
    template = read_text(template_file) if template_file.is_file() else config.get("chat_template")
    named = {key: _content(special.get(key)) for key in SPECIAL}
    if not main.is_file():
        return Tokenizer(folder, {}, frozenset(), dict(others), named, template)
    content = read_json(main)
    model = content.get("model") or {}
    added = {int(token["id"]): str(token["content"]) for token in content.get("added_tokens") or []}
    rules = {key: content.get(key) for key in RULES} | {"merges": _merges(model), "model": model.get("type")}
    return Tokenizer(folder, _vocabulary(model) | added, frozenset(added), rules, named, template)


def same_tokenizer(one: Path, other: Path) -> bool:
    """Whether two folders hold the same vocabulary and chat template, to the byte."""

    def content(folder: Path) -> list[Any]:
        files = (folder / name for name in (*VOCABULARY_FILES, "chat_template.jinja"))
        config = folder / "tokenizer_config.json"
        template = read_json(config).get("chat_template") if config.is_file() else None  # older versions keep it here
        return [*(read_bytes(file) if file.is_file() else None for file in files), template]

    return content(one) == content(other)


def compare(base: Tokenizer | None, branch: Tokenizer | None) -> Findings:
    """What differs between a branch's tokenizer and the base's; a branch without one was trained with the base's."""
    findings = Findings()
    if branch is None:
        return findings
    if base is None:
        findings.warnings.append(
            f"{branch.folder}: has a tokenizer, the base has none, so they cannot be compared and a fused model gets none: "
            "copy the base's tokenizer files into its folder."
        )
        return findings
    if bool(base.tokens) != bool(branch.tokens):
        findings.warnings.append(
            f"{branch.folder}: its tokenizer is kept in other files than that of {base.folder}, so they cannot be compared. "
            "Save the base's again with transformers (save_pretrained) to be sure that they are the same."
        )
    else:
        _compare_tokens(findings, base, branch)
        _compare_rules(findings, base, branch)
    _compare_special(findings, base, branch)
    _compare_template(findings, base, branch)
    return findings


def conflicts(base: Tokenizer | None, one: Tokenizer | None, other: Tokenizer | None) -> list[str]:
    """A problem if both branches gave one id a new meaning, and not the same: one embedding row cannot hold both."""
    if base is None or one is None or other is None:
        return []
    ids = sorted(
        token_id
        for token_id in one.tokens.keys() & other.tokens.keys()
        if one.tokens[token_id] != other.tokens[token_id]
        and base.tokens.get(token_id) not in (one.tokens[token_id], other.tokens[token_id])
    )
    if not ids:
        return []
    first = ids[0]
    return [
        f"{one.folder} and {other.folder} use {len(ids)} token ids for different new tokens (id {first}: "
        f"{one.tokens[first]!r} and {other.tokens[first]!r}), so one embedding row would mean two things. "
        "Train both with the same added tokens."
    ]


def _compare_tokens(findings: Findings, base: Tokenizer, branch: Tokenizer) -> None:
    both = base.tokens.keys() & branch.tokens.keys()
    changed = sorted(token_id for token_id in both if base.tokens[token_id] != branch.tokens[token_id])
    if moved := [token_id for token_id in changed if token_id not in base.added]:
        first = moved[0]
        findings.problems.append(
            f"{branch.folder}: {len(moved)} token ids mean something else than in {base.folder} (id {first}: "
            f"{branch.tokens[first]!r}, not {base.tokens[first]!r}), so its delta does not fit the base's embeddings. "
            "Give a branch that was trained with the base's tokenizer."
        )
    new = [branch.tokens[token_id] for token_id in changed if token_id in base.added]
    new += [branch.tokens[token_id] for token_id in sorted(branch.tokens.keys() - both)]
    if new:
        findings.warnings.append(
            f"{branch.folder}: its tokenizer knows {len(new)} tokens that the base's does not ({some(new)}). It matters if "
            "they occur in prompts or answers: a fused model gets the base's tokenizer and would split them into pieces."
        )
    lost = [base.tokens[token_id] for token_id in sorted(base.tokens.keys() - both)]
    if lost:
        findings.warnings.append(
            f"{branch.folder}: its tokenizer lacks {len(lost)} tokens of the base's ({some(lost)}). It does not matter for "
            "fusion: their embedding rows are the base's."
        )


def _compare_rules(findings: Findings, base: Tokenizer, branch: Tokenizer) -> None:
    names = sorted(base.rules.keys() | branch.rules.keys())
    differing = [name for name in names if base.rules.get(name) != branch.rules.get(name)]
    if differing:
        findings.warnings.append(
            f"{branch.folder}: its tokenizer splits text by other rules than the base's ({some(differing)}). It matters "
            "where they split the same text differently: a fused model reads text as the base does."
        )


def _compare_special(findings: Findings, base: Tokenizer, branch: Tokenizer) -> None:
    differing = [key for key in SPECIAL if base.special[key] != branch.special[key]]
    if not differing:
        return
    shown = ", ".join(f"{key} {branch.special[key]!r}, not {base.special[key]!r}" for key in differing)
    matters = "It does not matter for fusion, which takes the base's."
    if "eos_token" in differing:
        matters = "It matters: a fused model gets the base's, and may not stop where this branch learnt to."
    findings.warnings.append(f"{branch.folder}: its special tokens differ from the base's ({shown}). {matters}")


def _compare_template(findings: Findings, base: Tokenizer, branch: Tokenizer) -> None:
    if branch.template is None or branch.template == base.template:
        return
    has = "has another one" if base.template else "has none"
    findings.warnings.append(
        f"{branch.folder}: it was trained with a chat template of its own, the base {has}. It matters for chats: a fused "
        f"model gets the base's, so copy this one's into its folder if it is to be prompted as here."
    )


def _vocabulary(model: dict[str, Any]) -> dict[int, str]:
    vocabulary = model.get("vocab") or {}
    if isinstance(vocabulary, list):  # Unigram: [token, score] in the order of ids
        return {token_id: str(entry[0]) for token_id, entry in enumerate(vocabulary)}
    return {int(token_id): str(token) for token, token_id in vocabulary.items()}


def _merges(model: dict[str, Any]) -> list[str]:
    """Written as "a b" by older versions of tokenizers, as ["a", "b"] by newer ones."""
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges") or []]


def _content(token: Any) -> str | None:
    content = token.get("content") if isinstance(token, dict) else token
    return None if content is None else str(content)
