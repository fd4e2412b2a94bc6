"""Branches as whole models: the same merge without flags, nothing half-written, nothing rounded, nothing stale."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from paft_plugin.cli import paft
from paft_plugin.deltas.delta import delta_of
from paft_plugin.deltas.store import open_model
from paft_plugin.errors import PaftError
from paft_plugin.fusion.recipe import materialize as module
from paft_plugin.fusion.recipe.render import MATERIALIZED, merge_command
from paft_plugin.fusion.recipe.write import write_recipe
from tests.deltas.builders import TEMPLATE, make_adapter, make_base, make_tokenizer, merged_by_peft, weights
from tests.fusion.mergekit_runs import command_in, run_mergekit
from tests.fusion.world import World, make_world


def test_the_merge_is_the_same_and_needs_no_flags(world: World, tmp_path: Path) -> None:
    plain = write_recipe(world.request(tmp_path / "plain" / "r.yml", "ties", density=0.3))
    whole = write_recipe(world.request(tmp_path / "who le+x@y" / "r.yml", "ties", density=0.3, materialize=True))
    assert merge_command(whole)[3:] == ["--random-seed", "0"]
    for recipe in (plain, whole):
        run_mergekit(command_in(recipe.file))
    for name, tensor in weights(plain.merged).items():
        torch.testing.assert_close(weights(whole.merged)[name], tensor, atol=2e-7, rtol=0, msg=name)


@pytest.mark.parametrize("kind", [{}, {"modules_to_save": ["lm_head"]}, {"target_modules": ["q_proj", "embed_tokens"]}])
def test_a_whole_model_is_what_peft_merges_and_loads_with_its_tokenizer(tmp_path: Path, kind: dict[str, Any]) -> None:
    base = make_base(tmp_path / "base")
    make_tokenizer(base)
    branch = make_adapter(base, tmp_path / "branch", **kind)
    delta = delta_of(open_model(base), branch)
    module.write_whole_model(delta, tmp_path / "whole")
    expected = merged_by_peft(base, branch)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=0, msg=name)
    assert AutoTokenizer.from_pretrained(tmp_path / "whole").chat_template == TEMPLATE
    assert json.loads((tmp_path / "whole" / "generation_config.json").read_text())["max_new_tokens"] == 7


def test_only_what_the_adapter_touches_is_written_in_fp32(tmp_path: Path) -> None:
    world = make_world(tmp_path / "bf16", torch.bfloat16)
    branch = make_adapter(world["base"], tmp_path / "branch", target_modules=["q_proj"])
    delta = delta_of(open_model(world["base"]), branch)
    module.write_whole_model(delta, tmp_path / "whole")
    base, whole = weights(world["base"]), weights(tmp_path / "whole")
    for name, tensor in whole.items():
        assert tensor.dtype == (torch.float32 if "q_proj" in name else torch.bfloat16)
        if "q_proj" in name:
            torch.testing.assert_close(tensor - base[name].float(), delta.one(name), atol=1e-8, rtol=1e-4)
        else:
            assert torch.equal(tensor, base[name])
    file = (tmp_path / "whole" / "model.safetensors").stat().st_size
    assert 0 < file - module.whole_model_size(delta) < 10_000  # the header


def test_a_stored_head_moves_with_the_embedding_that_it_is_tied_to(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tie_word_embeddings=True)
    tied = {"modules_to_save": ["embed_tokens"], "target_modules": ["q_proj"], "ensure_weight_tying": True}
    branch = make_adapter(base, tmp_path / "branch", **tied)
    tensors = weights(base)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    module.write_whole_model(delta_of(open_model(base), branch), tmp_path / "whole")
    whole = weights(tmp_path / "whole")
    assert torch.equal(whole["lm_head.weight"], whole["model.embed_tokens.weight"])
    assert not torch.equal(whole["lm_head.weight"], weights(base)["lm_head.weight"])


def test_a_folder_is_reused_for_the_same_content_and_never_for_another(world: World, tmp_path: Path) -> None:
    branch = make_adapter(world["base"], tmp_path / "branch", seed=7)
    request = world.request(tmp_path / "r.yml", "ties", preference=str(branch), materialize=True)
    first = write_recipe(request).branches[1].whole
    assert first is not None
    stamp = (first / "model.safetensors").stat().st_mtime_ns
    assert write_recipe(request).branches[1].whole == first
    assert (first / "model.safetensors").stat().st_mtime_ns == stamp
    make_adapter(world["base"], branch, seed=8)
    assert write_recipe(request).branches[1].whole != first


def test_a_write_that_is_cut_off_leaves_nothing(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_recipe(world.request(tmp_path / "r.yml", "ties", materialize=True))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert list((tmp_path / MATERIALIZED).iterdir()) == []


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(PaftError, match="GB free"):
        write_recipe(world.request(tmp_path / "r.yml", "ties", materialize=True))
    assert list(tmp_path.iterdir()) == []


def test_two_whole_models_need_no_materializing(world: World, tmp_path: Path) -> None:
    with pytest.raises(PaftError, match="whole models already"):
        write_recipe(world.request(tmp_path / "r.yml", "ties", "sft-full", "dpo-full", materialize=True))


def test_the_command_line_says_where_and_how_large(world: World, tmp_path: Path) -> None:
    options = ["--base", world["base"], "--sft", world["sft"], "--preference", world["dpo-full"], "--method", "ties"]
    result = CliRunner().invoke(
        paft, ["recipe", *map(str, options), "--materialize", "--output", str(tmp_path / "r.yml")]
    )
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("Whole model: ")]
    assert str(tmp_path / MATERIALIZED / "sft-") in line
    assert "GB" in line
    assert "--lora" not in result.stdout
