"""A branch's tokenizer is the base's, or what differs is explained: whether it matters when both are fused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from paft_plugin.deltas.tokenizer import compare, conflicts, read_tokenizer
from paft_plugin.errors import Findings, PaftError
from tests.deltas.builders import make_tokenizer


@pytest.fixture
def base(tmp_path: Path) -> Path:
    make_tokenizer(tmp_path / "base")
    return tmp_path / "base"


def edited(base: Path, folder: Path, change: Callable[[PreTrainedTokenizerFast], Any]) -> Path:
    """The base's tokenizer as a run saves it that changed something."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    change(tokenizer)
    tokenizer.save_pretrained(folder)
    return folder


def found(base: Path, branch: Path) -> Findings:
    return compare(read_tokenizer(base), read_tokenizer(branch))


def only(sentences: list[str]) -> str:
    assert len(sentences) == 1, sentences
    return sentences[0]


def rewrite(folder: Path, file: str, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))


def test_the_same_tokenizer_saved_again_is_no_finding(base: Path, tmp_path: Path) -> None:
    again = edited(base, tmp_path / "again", lambda tokenizer: tokenizer(["w1 w2"]))
    rewrite(
        again,
        "tokenizer.json",
        lambda content: content.update(truncation={"max_length": 8, "strategy": "LongestFirst"}),
    )
    assert found(base, again) == Findings()


def test_a_branch_without_a_tokenizer_used_the_bases(base: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert found(base, tmp_path / "empty") == Findings()
    assert "the base has none" in only(found(tmp_path / "empty", base).warnings)


CHANGES: dict[str, tuple[Callable[[PreTrainedTokenizerFast], Any], tuple[str, ...]]] = {
    "added tokens": (
        lambda tokenizer: tokenizer.add_tokens(["<think>", "</think>"]),
        ("knows 2 tokens that the base's does not (<think>, </think>)", "It matters if they occur"),
    ),
    "padding token": (
        lambda tokenizer: tokenizer.add_special_tokens({"pad_token": "w0"}),
        ("pad_token 'w0', not None", "It does not matter for fusion"),
    ),
    "end of text": (
        lambda tokenizer: tokenizer.add_special_tokens({"eos_token": "w1"}),
        ("eos_token 'w1', not None", "may not stop where this branch learnt to"),
    ),
    "chat template": (
        lambda tokenizer: setattr(tokenizer, "chat_template", "{{ messages }}"),
        ("a chat template of its own, the base has another one", "It matters for chats"),
    ),
    "new chat template": (
        lambda tokenizer: setattr(tokenizer, "chat_template", "{{ messages }}"),
        ("a chat template of its own, the base has none",),
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_difference_is_explained_in_one_sentence_each(base: Path, tmp_path: Path, what: str) -> None:
    change, sentences = CHANGES[what]
    branch = edited(base, tmp_path / "branch", change)
    if what == "new chat template":
        (base / "chat_template.jinja").unlink()
    findings = found(base, branch)
    assert not findings.problems
    said = [warning for warning in findings.warnings if sentences[0] in warning]
    assert all(sentence in only(said) for sentence in sentences)
    assert str(branch) in only(said)


def test_other_words_at_the_same_ids_are_a_problem(base: Path, tmp_path: Path) -> None:
    branch = Path(shutil.copytree(base, tmp_path / "branch"))

    def swap(content: dict[str, Any]) -> None:
        words = content["model"]["vocab"]
        words["w3"], words["w4"] = words["w4"], words["w3"]

    rewrite(branch, "tokenizer.json", swap)
    assert "2 token ids mean something else than in" in only(found(base, branch).problems)
    assert "(id 3: 'w4', not 'w3')" in only(found(base, branch).problems)


def test_a_reserved_token_may_get_a_new_name(base: Path, tmp_path: Path) -> None:
    reserved = edited(base, tmp_path / "reserved", lambda tokenizer: tokenizer.add_tokens(["<reserved_0>"]))
    one, other = (Path(shutil.copytree(reserved, tmp_path / name)) for name in ("one", "other"))
    for branch, name in ((one, "<|im_start|>"), (other, "<tool>")):
        rewrite(branch, "tokenizer.json", lambda content, name=name: content["added_tokens"][-1].update(content=name))
    findings = found(reserved, one)
    assert not findings.problems
    assert "knows 1 tokens that the base's does not (<|im_start|>)" in only(findings.warnings)
    three = [read_tokenizer(folder) for folder in (reserved, one, other)]
    assert "'<|im_start|>' and '<tool>'), so one embedding row would mean two things" in only(conflicts(*three))
    assert conflicts(three[0], three[1], three[1]) == []
    assert conflicts(three[0], three[1], three[0]) == []


def test_other_rules_and_fewer_tokens_are_said(base: Path, tmp_path: Path) -> None:
    branch = Path(shutil.copytree(base, tmp_path / "branch"))
    rewrite(branch, "tokenizer.json", lambda content: content.update(normalizer={"type": "Lowercase"}))
    assert "splits text by other rules than the base's (normalizer)" in only(found(base, branch).warnings)
    shutil.copy(base / "tokenizer.json", branch)
    rewrite(branch, "tokenizer.json", lambda content: content["model"]["vocab"].pop("w7"))
    assert "lacks 1 tokens of the base's (w7). It does not matter" in only(found(base, branch).warnings)


def test_merges_are_the_same_in_either_notation(tmp_path: Path) -> None:
    vocabulary = {"a": 0, "b": 1, "ab": 2}
    folders = []
    for name, merges in (("old", ["a b"]), ("new", [["a", "b"]])):
        (tmp_path / name).mkdir()
        model = {"type": "BPE", "vocab": vocabulary, "merges": merges}
        (tmp_path / name / "tokenizer.json").write_text(json.dumps({"model": model, "added_tokens": []}))
        folders.append(tmp_path / name)
    assert found(*folders) == Findings()


def test_unigram_vocabularies_are_lists(tmp_path: Path) -> None:
    for name, pieces in (("base", ["a", "b"]), ("branch", ["a", "c"])):
        (tmp_path / name).mkdir()
        model = {"type": "Unigram", "vocab": [[piece, -1.0] for piece in pieces]}
        (tmp_path / name / "tokenizer.json").write_text(json.dumps({"model": model}))
    assert "(id 1: 'c', not 'b')" in only(found(tmp_path / "base", tmp_path / "branch").problems)


def test_files_that_cannot_be_compared_say_so(base: Path, tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.model").write_bytes(b"pieces")
    assert "cannot be compared" in only(found(base, tmp_path / "one").warnings[:1])
    assert found(tmp_path / "one", tmp_path / "other") == Findings()
    (tmp_path / "other" / "tokenizer.model").write_bytes(b"other pieces")
    assert "other rules than the base's (tokenizer.model)" in only(found(tmp_path / "one", tmp_path / "other").warnings)


@pytest.mark.parametrize(
    "content", [{"added_tokens": [{"id": 1}]}, {"model": {"vocab": {"a": None}}}, {"model": "BPE"}]
)
def test_files_that_no_tokenizer_wrote_are_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(PaftError, match=r"a file of its tokenizer: something in it is of a wrong kind"):
        read_tokenizer(tmp_path)
