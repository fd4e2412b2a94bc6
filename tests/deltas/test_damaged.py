"""Configs, indexes and tokenizers with values of wrong kinds: the file's name and a sentence, before anything takes for ever."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import pytest

from paft_plugin.deltas.adapter import open_adapter
from paft_plugin.deltas.belongs import check_branch
from paft_plugin.deltas.skeleton import open_skeleton
from paft_plugin.deltas.store import open_model
from paft_plugin.deltas.tokenizer import read_tokenizer
from paft_plugin.errors import PaftError
from paft_plugin.pipeline.estimate.memory import estimate_memory
from paft_plugin.pipeline.estimate.shapes import weight_shapes
from tests.deltas.builders import edit_config, make_adapter, make_base, make_model, make_tokenizer


@pytest.fixture
def base(tmp_path: Path) -> Path:
    make_tokenizer(make_base(tmp_path / "base"))
    return tmp_path / "base"


@pytest.mark.parametrize(
    "changes",
    [
        {"base_model_name_or_path": 0.5},
        {"use_rslora": "no"},
        {"fan_in_fan_out": []},
        {"rank_pattern": ["x"]},
        {"alpha_pattern": [1]},
        {"target_parameters": 3},
        {"trainable_token_indices": "all"},
        {"bias": {}},
    ],
)
def test_an_adapter_config_of_wrong_kinds(changes: dict[str, Any], base: Path, tmp_path: Path) -> None:
    make_adapter(base, tmp_path / "adapter")
    edit_config(tmp_path / "adapter", **changes)
    with pytest.raises(PaftError, match=rf"adapter_config\.json: .*{next(iter(changes))}"):
        open_adapter(tmp_path / "adapter")
    assert check_branch(base, tmp_path / "adapter").problems


def test_a_pattern_without_end(base: Path, tmp_path: Path) -> None:
    make_adapter(base, tmp_path / "adapter")
    edit_config(tmp_path / "adapter", alpha_pattern={r"([a-z_.0-9]+)+[A-Z]": 3})
    adapter = open_adapter(tmp_path / "adapter")
    began = time.process_time()
    with contextlib.suppress(PaftError):  # `regex` may answer at once, where `re` takes years
        adapter.scale(next(iter(adapter.factors)))
    assert time.process_time() - began < 5


@pytest.mark.parametrize("shard", [None, 3, {}, "../model.safetensors", "/etc/passwd", "a/b", "", "\ud800", "a\0b"])
def test_an_index_that_names_no_file_of_the_folder(shard: Any, base: Path, tmp_path: Path) -> None:
    folder = make_model(base, tmp_path / "model", max_shard_size="30KB")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["lm_head.weight"] = shard
    index.write_text(json.dumps(content))
    with pytest.raises(PaftError, match="is no file's name"):
        open_model(folder)


@pytest.mark.parametrize("layers", [1e30, 10**30, 10**9, float("inf"), "many", None, -1, [2]])
def test_a_base_config_with_layers_without_end(layers: Any, base: Path, tmp_path: Path) -> None:
    edit_config(base, "config.json", num_hidden_layers=layers)
    said = open_skeleton(open_model(base))
    assert not isinstance(said, str) or str(base) in said
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text((base / "config.json").read_text())
    assert len(weight_shapes(tmp_path / "bare")) < 10
    assert estimate_memory({"micro_batch_size": 1}, base).total == 0


@pytest.mark.parametrize("vocabulary", [{"a": float("inf")}, {"a": None}, {"a": []}, 3, [[]], [3], "x"])
def test_a_tokenizer_of_wrong_kinds(vocabulary: Any, base: Path) -> None:
    file = base / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"] = vocabulary
    file.write_text(json.dumps(content))
    with pytest.raises(PaftError, match="tokenizer"):
        read_tokenizer(base)


@pytest.mark.parametrize(
    "changes",
    [
        {"sequence_len": 1e30},
        {"sequence_len": [1]},
        {"micro_batch_size": "x"},
        {"lora_r": float("nan")},
        {"lora_r": {}},
    ],
)
def test_settings_that_no_memory_can_be_estimated_for(changes: dict[str, Any], base: Path) -> None:
    config = {"micro_batch_size": 1, "adapter": "lora", "lora_target_linear": True, **changes}
    assert estimate_memory(config, base).total >= 0
