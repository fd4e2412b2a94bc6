"""Embeddings and heads: single trained tokens, tied weights, vocabularies that grew."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from paft_plugin.deltas.belongs import check_belongs
from paft_plugin.deltas.delta import open_delta
from paft_plugin.deltas.store import open_model, tied_names
from paft_plugin.errors import PaftError
from tests.deltas.architectures import ARCHITECTURES, save
from tests.deltas.builders import (
    VOCABULARY,
    assert_same_delta,
    delta_as_saved,
    edit_config,
    load_peft,
    make_adapter,
    make_base,
    make_gpt2,
    make_model,
    weights,
)

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("models") / "tied", tie_word_embeddings=True)


def adapt(base: Path, folder: Path, **lora: Any) -> Path:
    return make_adapter(base, folder, size=0.3, **{"target_modules": ["q_proj"], **lora})


def only(problems: list[str]) -> str:
    assert len(problems) == 1, problems
    return problems[0]


TOKENS: dict[str, Any] = {"in a list": [5, 1, 9], "by module": {"embed_tokens": [5, 1], "lm_head": [7]}}


@pytest.mark.parametrize("tokens", TOKENS)
def test_single_tokens_change_their_rows_alone(base: Path, tmp_path: Path, tokens: str) -> None:
    adapter = adapt(base, tmp_path / "adapter", trainable_token_indices=TOKENS[tokens])
    assert_same_delta(base, adapter, delta_as_saved(base, adapter, tmp_path / "merged"), atol=1e-5)
    change = dict(open_delta(base, adapter).tensors())[EMBEDDING]
    expected = [1, 5, 9] if tokens == "in a list" else [1, 5]
    assert change.any(dim=1).nonzero().flatten().tolist() == expected
    assert check_belongs(base, adapter) == []


def test_single_tokens_of_a_tied_base_are_tied_by_peft(tied: Path, tmp_path: Path) -> None:
    adapter = adapt(tied, tmp_path / "adapter", trainable_token_indices=[5, 1])
    assert_same_delta(tied, adapter, delta_as_saved(tied, adapter, tmp_path / "merged"), atol=1e-5)


def test_other_tokens_for_the_head_of_a_tied_base_are_refused(tied: Path, tmp_path: Path) -> None:
    adapter = adapt(tied, tmp_path / "adapter", trainable_token_indices={"embed_tokens": [5, 1], "lm_head": [7]})
    assert f"ties {EMBEDDING} to {HEAD}" in only(check_belongs(tied, adapter))


def test_token_rows_that_the_config_does_not_explain_are_refused(base: Path, tmp_path: Path) -> None:
    adapter = adapt(base, tmp_path / "adapter", trainable_token_indices=[5, 1])
    edit_config(adapter, trainable_token_indices=[5])
    assert "trainable_token_indices names 1 tokens, its file holds 2 rows" in only(check_belongs(base, adapter))
    for tokens in ([5, "1"], [5, -1]):
        edit_config(adapter, trainable_token_indices=tokens)
        assert f"names 5, {tokens[1]}: no token ids" in only(check_belongs(base, adapter))
    without = adapt(base, tmp_path / "without")
    edit_config(without, trainable_token_indices=[5])
    assert "trainable_token_indices is set, but its file has no rows" in only(check_belongs(base, without))


def grown_adapter(base: Path, folder: Path, **lora: Any) -> Path:
    """What a run leaves that added tokens: PEFT saves the resized embedding and head, and the inside of its wrappers."""
    torch.manual_seed(4)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.resize_token_embeddings(VOCABULARY + 6)
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", **lora))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn_like(parameter)
    adapted.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "lora",
    [{}, {"trainable_token_indices": [3, VOCABULARY + 2]}, {"modules_to_save": ["embed_tokens"]}],
    ids=["resized alone", "trained tokens", "trained whole"],
)
def test_a_vocabulary_that_grew_keeps_the_bases_rows(base: Path, tmp_path: Path, lora: dict[str, Any]) -> None:
    adapter = grown_adapter(base, tmp_path / "adapter", **lora)
    # A run may have trained the resized tensors themselves: then the copies move the base's rows as well.
    file = adapter / "adapter_model.safetensors"
    save_file({name: tensor + ("lora" not in name) / 8 for name, tensor in load_file(file).items()}, file)
    # PEFT's own merge of it, on a base that is resized in the same way.
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.resize_token_embeddings(VOCABULARY + 6)
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    expected = {name: merged[name][: tensor.shape[0]] - tensor for name, tensor in weights(base).items()}
    assert_same_delta(base, adapter, expected, atol=1e-6)
    assert open_delta(base, adapter).grown == {EMBEDDING: 6, HEAD: 6}
    assert "its vocabulary grew" in only(check_belongs(base, adapter))


def test_a_tied_lora_adapter_is_what_peft_serves_not_what_it_merges(tied: Path, tmp_path: Path) -> None:
    """Tied adapters share their factors. PEFT 0.20 merges both into the one tensor, so twice; served, the change counts once."""
    targets = ["q_proj", "embed_tokens", "lm_head"]
    adapter = adapt(tied, tmp_path / "adapter", target_modules=targets, ensure_weight_tying=True)
    model = AutoModelForCausalLM.from_pretrained(tied, dtype=torch.float64)
    with torch.no_grad():
        for name, change in open_delta(tied, adapter).tensors():
            model.get_parameter(name).add_(change)
    tokens = torch.arange(20)[None]
    served = load_peft(tied, adapter)(tokens).logits
    torch.testing.assert_close(model(tokens).logits.float(), served, atol=1e-3, rtol=1e-3)
    assert check_belongs(tied, adapter) == []


@pytest.mark.parametrize("targets", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
def test_an_adapter_that_unties_a_tied_base_is_refused(tied: Path, tmp_path: Path, targets: list[str]) -> None:
    adapter = adapt(tied, tmp_path / "adapter", target_modules=targets)
    assert f"ties {EMBEDDING} to {HEAD}" in only(check_belongs(tied, adapter))


def test_a_base_whose_tied_tensors_differ_is_not_tied(tied: Path, tmp_path: Path) -> None:
    """transformers doesn't tie them either, whatever its config says; a model branch may change both."""
    untied = Path(shutil.copytree(tied, tmp_path / "untied"))
    tensors = load_file(untied / "model.safetensors")
    save_file({**tensors, HEAD: tensors[EMBEDDING] + 1}, untied / "model.safetensors", metadata={"format": "pt"})
    assert tied_names(open_model(tied)) == (EMBEDDING, HEAD)
    assert tied_names(open_model(untied)) is None
    loaded = AutoModelForCausalLM.from_pretrained(untied)
    assert not torch.equal(loaded.get_input_embeddings().weight, loaded.get_output_embeddings().weight)
    assert {EMBEDDING, HEAD} <= set(open_delta(untied, make_model(untied, tmp_path / "branch")).names)


def test_the_head_of_gpt_neox_has_another_name_in_the_file(tmp_path: Path) -> None:
    base = save(ARCHITECTURES["gpt-neox"], tmp_path / "base")
    adapter = adapt(base, tmp_path / "adapter", target_modules=["query_key_value", "lm_head", "embed_in"])
    assert_same_delta(base, adapter, delta_as_saved(base, adapter, tmp_path / "merged"), atol=1e-5)
    assert {"embed_out.weight", "gpt_neox.embed_in.weight"} <= set(open_delta(base, adapter).names)
    assert check_belongs(base, adapter) == []


def test_a_base_without_the_prefix_of_its_task_has_the_same_tensors(tmp_path: Path) -> None:
    """The hub's GPT-2 says `h.0…` where transformers saves `transformer.h.0…`, and holds buffers that no model loads."""
    base = make_gpt2(tmp_path / "base")
    adapter = adapt(base, tmp_path / "adapter", target_modules=["c_attn", "c_proj"])
    model = make_model(base, tmp_path / "model")
    expected = {branch: dict(open_delta(base, branch).tensors()) for branch in (adapter, model)}
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in weights(base).items()}
    save_file({**tensors, "h.0.attn.bias": torch.ones(1, 1, 16, 16)}, base / "model.safetensors")
    for branch, changes in expected.items():
        actual = dict(open_delta(base, branch).tensors())
        assert actual.keys() == {name.removeprefix("transformer.") for name in changes}
        assert all(torch.equal(actual[name.removeprefix("transformer.")], change) for name, change in changes.items())
        assert check_belongs(base, branch) == []


def test_a_branch_whose_tensors_no_name_explains_is_refused(base: Path, tmp_path: Path) -> None:
    model = make_model(base, tmp_path / "model")
    tensors = weights(model)
    tensors["elsewhere.weight"] = tensors.pop("model.norm.weight")
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(PaftError, match=r"has no model\.norm\.weight"):
        open_delta(base, model)
