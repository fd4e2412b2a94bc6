"""Everything that keeps a branch from belonging to its base is said at once, with the file and the way out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from paft_plugin.deltas.belongs import check_belongs, check_finite
from paft_plugin.deltas.delta import open_delta
from paft_plugin.errors import PaftError
from tests.deltas.builders import edit_config, make_adapter, make_base, make_model, weights


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, an adapter and a full model that belong together; tests change copies only."""
    folder = tmp_path_factory.mktemp("models")
    base = make_base(folder / "base")
    make_adapter(base, folder / "adapter")
    make_model(base, folder / "model", max_shard_size="20KB")
    make_adapter(make_base(folder / "tied", tie_word_embeddings=True), folder / "tied-adapter")
    return folder


@pytest.fixture
def base(models: Path) -> Path:
    return models / "base"


@pytest.fixture
def adapter(models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(models / "adapter", tmp_path / "adapter"))


@pytest.fixture
def model(models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(models / "model", tmp_path / "model"))


def only(problems: list[str]) -> str:
    assert len(problems) == 1, problems
    return problems[0]


def test_branches_that_belong_have_no_problems(models: Path, base: Path) -> None:
    assert check_belongs(base, models / "adapter") == []
    assert check_belongs(base, models / "model") == []
    assert check_finite(models / "adapter") == []


def test_missing_paths_are_all_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    problems = check_belongs(tmp_path / "nowhere", file)
    assert len(problems) == 2
    assert f"{tmp_path / 'nowhere'}: no such folder" in problems[0]
    assert f"{file}: a file, where a folder is wanted" in problems[1]


def test_an_empty_folder_and_an_unfinished_run_are_told_apart(base: Path, tmp_path: Path) -> None:
    assert "no config.json" in only(check_belongs(base, tmp_path))
    (tmp_path / "checkpoint-50").mkdir()
    assert "checkpoint-50: its training was cut off" in only(check_belongs(base, tmp_path))


def test_an_adapter_without_its_config_is_named(base: Path, adapter: Path) -> None:
    (adapter / "adapter_config.json").unlink()
    assert f"{adapter / 'adapter_config.json'}: missing" in only(check_belongs(base, adapter))


def test_an_adapter_as_base_is_refused(models: Path, base: Path) -> None:
    assert "an adapter, where a whole model is wanted" in only(check_belongs(models / "adapter", base))


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_truncated_adapter_is_named(base: Path, adapter: Path, keep: int) -> None:
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert f"{file}: truncated or corrupt" in only(check_belongs(base, adapter))


def test_every_broken_shard_is_named_at_once(base: Path, model: Path) -> None:
    first, second, *_ = sorted(model.glob("*.safetensors"))
    first.write_bytes(first.read_bytes()[:-5])
    second.unlink()
    problems = check_belongs(base, model)
    assert len(problems) == 2
    assert f"{first}: truncated or corrupt" in problems[0]
    assert f"{second}: missing" in problems[1]


def test_an_index_that_names_absent_tensors_is_refused(base: Path, model: Path) -> None:
    index = model / "model.safetensors.index.json"
    shards = json.loads(index.read_text())["weight_map"]
    edit_config(model, index.name, weight_map={**shards, "model.layers.7.weight": next(iter(shards.values()))})
    assert "model.layers.7.weight, which no shard holds" in only(check_belongs(base, model))


def test_a_leftover_single_file_beside_shards_is_refused(base: Path, model: Path) -> None:
    shutil.copy(base / "model.safetensors", model)
    assert "holds both model.safetensors and model.safetensors.index.json" in only(check_belongs(base, model))


def test_broken_json_is_named(base: Path, adapter: Path) -> None:
    (adapter / "adapter_config.json").write_text('{"r": ')
    assert f"{adapter / 'adapter_config.json'}: no valid JSON" in only(check_belongs(base, adapter))


def test_pickled_weights_are_refused_with_the_way_out(base: Path, adapter: Path, model: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    for file in [*model.glob("*.safetensors"), model / "model.safetensors.index.json"]:
        file.unlink()
    (model / "pytorch_model.bin").write_bytes(b"")
    for branch in (adapter, model):
        problem = only(check_belongs(base, branch))
        assert "pickled" in problem
        assert "save_pretrained()" in problem


KINDS = {
    "use_dora": True,
    "alora_invocation_tokens": [1],
    "use_qalora": True,
    "layer_replication": [[0, 2]],
    "arrow_config": {"top_k": 1},
    "velora_config": {"num_groups": 4},
    "kasa_config": {"beta": 1e-4, "gamma": 1e-3},
    "init_lora_weights": "pissa_niter_4",
    "peft_type": "LOHA",
}


@pytest.mark.parametrize("key", KINDS)
def test_an_adapter_whose_delta_is_not_s_b_a_is_refused_by_name(base: Path, adapter: Path, key: str) -> None:
    edit_config(adapter, **{key: KINDS[key]})
    problem = only(check_belongs(base, adapter))
    assert key in problem
    assert any(way in problem for way in ("etrain", "instead", "Convert"))
    with pytest.raises(PaftError, match=key):
        open_delta(base, adapter)


@pytest.mark.parametrize("initial", ["olora", "corda", "loftq", "lora_ga", "pissa"])
def test_initialisations_that_change_the_base_are_refused(base: Path, adapter: Path, initial: str) -> None:
    edit_config(adapter, init_lora_weights=initial)
    assert "changes the base" in only(check_belongs(base, adapter))


def test_several_reasons_are_all_said(base: Path, adapter: Path) -> None:
    edit_config(adapter, use_dora=True, init_lora_weights="pissa")
    assert len(check_belongs(base, adapter)) == 2


def test_biases_that_peft_did_not_save_are_missed(base: Path, adapter: Path) -> None:
    edit_config(adapter, bias="lora_only")
    assert "did not save the biases" in only(check_belongs(base, adapter))


def test_unknown_tensors_and_lone_factors_are_refused(base: Path, adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    lone = next(name for name in tensors if name.endswith("lora_B.weight"))
    del tensors[lone]
    save_file({**tensors, "base_model.model.lora_magnitude_vector": torch.ones(2)}, file)
    problems = check_belongs(base, adapter)
    assert "lora_magnitude_vector is of no kind known here" in problems[0]
    assert "one LoRA factor without the other" in problems[1]


def test_another_architecture_is_recognised_by_shapes_and_names(adapter: Path, tmp_path: Path) -> None:
    wide = make_base(tmp_path / "wide", intermediate_size=40)
    assert any("has shape" in problem for problem in check_belongs(wide, adapter))
    shallow = make_base(tmp_path / "shallow", num_hidden_layers=1)
    problem = only(check_belongs(shallow, adapter))
    assert "model.layers.1" in problem
    assert f"which {shallow} does not have" in problem


def test_a_model_of_another_shape_or_with_other_tensors_is_refused(base: Path, tmp_path: Path) -> None:
    problems = check_belongs(base, make_base(tmp_path / "wide", intermediate_size=40))
    assert "differ in shape" in only(problems)
    assert "has no model.layers.1" in only(check_belongs(base, make_base(tmp_path / "shallow", num_hidden_layers=1)))
    assert "has no lm_head.weight" in only(check_belongs(base, make_base(tmp_path / "tied", tie_word_embeddings=True)))


def test_the_base_is_compared_by_content_where_both_are_here(base: Path, adapter: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(base, tmp_path / "renamed"))
    assert check_belongs(copy, adapter) == []
    other = make_base(tmp_path / "base", seed=9)
    problem = only(check_belongs(other, adapter))
    assert f"trained on {base}, not on {other}" in problem
    # The way out that the message names.
    edit_config(adapter, base_model_name_or_path=str(other))
    assert check_belongs(other, adapter) == []


@pytest.mark.parametrize(
    ("said", "fits"), [("org/base", True), ("/gone/base", True), ("org/other-7B", False), (None, True)]
)
def test_the_base_is_compared_by_name_where_the_other_is_not_here(
    base: Path, adapter: Path, said: str, fits: bool
) -> None:
    edit_config(adapter, base_model_name_or_path=said)
    assert (check_belongs(base, adapter) == []) == fits


def test_a_snapshot_of_the_hubs_cache_has_its_name(base: Path, adapter: Path, tmp_path: Path) -> None:
    snapshot = Path(shutil.copytree(base, tmp_path / "models--org--Some-7B" / "snapshots" / "0f3a"))
    edit_config(adapter, base_model_name_or_path="org/Some-7B")
    assert check_belongs(snapshot, adapter) == []


@pytest.mark.parametrize("modules", [["embed_tokens"], ["embed_tokens", "lm_head"]])
def test_a_tied_base_takes_no_change_of_one_half(models: Path, tmp_path: Path, modules: list[str]) -> None:
    # Two copies trained apart differ, so one tensor can't hold both.
    branch = make_adapter(models / "tied", tmp_path / "adapter", target_modules=["q_proj"], modules_to_save=modules)
    file = branch / "adapter_model.safetensors"
    tensors = load_file(file)
    head = "base_model.model.lm_head.weight"
    if head in tensors:
        save_file({**tensors, head: tensors[head] + 1}, file)
    assert "ties model.embed_tokens.weight to lm_head.weight" in only(check_belongs(models / "tied", branch))


def test_a_grown_vocabulary_is_a_problem_with_its_rows(base: Path, adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    embedding = weights(base)["model.embed_tokens.weight"]
    copies = {
        f"base_model.model.{name}.weight": torch.cat([embedding, embedding[:3]])
        for name in ("model.embed_tokens", "lm_head")
    }
    save_file({**load_file(file), **copies}, file)
    problem = only(check_belongs(base, adapter))
    assert "model.embed_tokens.weight by 3 rows" in problem
    assert "lm_head.weight by 3 rows" in problem


def test_nan_is_found_by_tensor(adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(iter(tensors))
    tensors[name][0, 0] = float("nan")
    save_file(tensors, file)
    assert name in only(check_finite(adapter))
