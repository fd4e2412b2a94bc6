"""Models with different vocabularies under `tokenizer` and `tokenizer_source`: what mergekit makes of them, and what is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from paft_plugin.cli import paft
from tests.deltas.builders import VOCABULARY, edit_config, make_base, make_model, make_tokenizer
from tests.fusion.merge.tools import SEED, assert_same, by_mergekit, content, load_all, reference, save

ADDED = [f"<t{index}>" for index in range(9)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base` and `plain`, its fine-tuned copy, with 61 tokens in 64 rows; `grown`, with 9 tokens more in 70 rows."""
    folder = tmp_path_factory.mktemp("vocabularies")
    base = make_base(folder / "base")
    plain, grown = make_model(base, folder / "plain"), make_model(base, folder / "grown", seed=3)
    for model in (base, plain, grown):
        make_tokenizer(model)
    tokenizer = AutoTokenizer.from_pretrained(grown)
    tokenizer.add_tokens(ADDED)
    tokenizer.save_pretrained(grown)
    tensors = load_file(grown / "model.safetensors")
    torch.manual_seed(4)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat([tensors[name], torch.randn(6, 32)])
    save_file(tensors, grown / "model.safetensors", metadata={"format": "pt"})
    edit_config(grown, "config.json", vocab_size=VOCABULARY + 6)
    return folder


def merge(recipe: Path, out: Path) -> Result:
    return CliRunner().invoke(paft, ["merge", str(recipe), str(out), "--quiet", f"--seed={SEED}"])


def recipe_of(models: Path, method: str, **keys: Any) -> dict[str, Any]:
    return content(method, models / "base", reference(models / "plain"), reference(models / "grown"), **keys)


@pytest.mark.parametrize(
    ("method", "keys", "rows"),
    [
        ("dare_ties", {"tokenizer_source": "union"}, 70),
        ("dare_ties", {"tokenizer_source": "base"}, 61),
        ("linear", {"tokenizer_source": "union"}, 70),
        ("ties", {"tokenizer": {"source": "union", "pad_to_multiple_of": 16}}, 80),
        ("ties", {"tokenizer": {"source": "base"}}, 61),
        ("task_arithmetic", {"tokenizer": {"source": "GROWN"}}, 70),
        ("task_arithmetic", {"tokenizer": {"tokens": {"<t0>": {"source": "TOKEN", "force": True}}}}, 70),
    ],
)
def test_vocabularies_merge_as_mergekit_merges_them(
    method: str, keys: dict[str, Any], rows: int, models: Path, tmp_path: Path
) -> None:
    grown = reference(models / "grown")
    tokenizer = keys.get("tokenizer", {})
    if tokenizer.get("source") == "GROWN":
        keys = {"tokenizer": {"source": grown}}
    if "tokens" in tokenizer:
        token = {"kind": "model_token", "model": grown, "token_id": 5}
        keys = {"tokenizer": {"tokens": {"<t0>": {"source": token, "force": True}}}}
    recipe = save(recipe_of(models, method, **keys), tmp_path / "r.yml")
    theirs = by_mergekit(recipe, tmp_path)
    result = merge(recipe, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert_same(load_all(tmp_path / "out"), theirs)
    assert theirs["lm_head.weight"].shape[0] == rows
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "mergekit-r" / name).read_bytes(), name
    longer = {
        str(models / name): count for name, count in {"base": 64, "plain": 64, "grown": 70}.items() if count > rows
    }
    assert ("fewer than" in result.stderr) is bool(longer)
    assert all(f"{name} ({count})" in result.stderr for name, count in longer.items())


def test_without_a_tokenizer_the_way_out_is_named(models: Path, tmp_path: Path) -> None:
    result = merge(save(recipe_of(models, "ties"), tmp_path / "r.yml"), tmp_path / "out")
    assert result.exit_code == 2
    assert "tokenizer: {source: union}" in result.stderr


def test_a_model_that_differs_in_more_than_its_vocabulary_is_no_case_for_a_tokenizer(
    models: Path, tmp_path: Path
) -> None:
    other = make_base(tmp_path / "other", intermediate_size=40, vocab_size=70)
    make_tokenizer(other)
    recipe = content("ties", models / "base", reference(models / "plain"), reference(other), tokenizer_source="union")
    result = merge(save(recipe, tmp_path / "r.yml"), tmp_path / "out")
    assert result.exit_code == 2
    assert "PAFT310" in result.stderr


def test_a_token_without_a_row_is_said_and_no_traceback(models: Path, tmp_path: Path) -> None:
    """mergekit stops at a `KeyError` or an `AssertionError` here."""
    missing = {"source": {"kind": "model_token", "model": reference(models / "grown"), "token_id": 999}, "force": True}
    recipe = recipe_of(models, "ties", tokenizer={"source": "union", "tokens": {"w3": missing}})
    result = merge(save(recipe, tmp_path / "r.yml"), tmp_path / "out")
    assert result.exit_code == 2, result.output
    assert "cannot align the vocabularies" in result.stderr
    assert not (tmp_path / "out").exists()


def test_several_merges_in_one_file_are_refused_with_the_way_out(models: Path, tmp_path: Path) -> None:
    """As mergekit-multi takes them."""
    recipe = save(recipe_of(models, "ties"), tmp_path / "r.yml")
    recipe.write_text(f"name: first\n{recipe.read_text()}---\n{recipe.read_text()}")
    result = merge(recipe, tmp_path / "out")
    assert result.exit_code == 2
    assert "mergekit-multi" in result.stderr
    assert "a file of its own" in result.stderr
