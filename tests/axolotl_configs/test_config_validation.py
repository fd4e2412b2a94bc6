"""Each shipped config passes axolotl's own validation, and nothing that it says is lost on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.axolotl_configs.stand_ins import CONFIGS, make_tokenizer

REPLACED = ("base_model", "output_dir")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_axolotl_accepts_every_key(path: Path, load_config: Callable[..., Any]) -> None:
    """axolotl drops keys that it does not know without a word, so a key counts only if it arrives."""
    cfg = load_config(path)
    for key, value in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        if key not in REPLACED:
            assert arrived(value, cfg[key]), f"{key}: {value} became {cfg[key]}"


def arrived(wanted: Any, got: Any) -> bool:
    """Whether `got` says everything that `wanted` says; defaults may have joined it."""
    if isinstance(wanted, dict):
        return isinstance(got, dict) and all(arrived(value, got.get(key)) for key, value in wanted.items())
    if isinstance(wanted, list):
        return len(wanted) == len(got) and all(map(arrived, wanted, got))
    return wanted == got


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_vocabulary_stays_the_bases(path: Path, load_config: Callable[..., Any]) -> None:
    """A token more would resize the embeddings, and the adapter would not fit the base model any more."""
    from axolotl.loaders import load_tokenizer
    from axolotl.utils.chat_templates import get_chat_template

    from tests.axolotl_configs.stand_ins import BASES

    base = BASES[yaml.safe_load(path.read_text(encoding="utf-8"))["base_model"]]
    tokenizer = load_tokenizer(load_config(path))
    assert tokenizer.get_vocab() == make_tokenizer(base).get_vocab()
    assert tokenizer.eos_token == base.eos
    assert tokenizer.pad_token in base.special_tokens
    assert tokenizer.chat_template == get_chat_template("alpaca")
