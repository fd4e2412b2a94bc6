"""Adapters that others than PEFT wrote: what is unambiguous is read and said, what is not is named once, with its cause."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from paft_plugin.deltas.belongs import check_belongs, check_branch
from paft_plugin.deltas.delta import open_delta
from paft_plugin.errors import PaftError
from tests.deltas.architectures import gemma3_with_vision, save
from tests.deltas.builders import edit_config, make_adapter, make_base, make_model, weights

PREFIX = "base_model.model."
Rename = Callable[[str], str]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    base = make_base(folder / "base")
    make_adapter(base, folder / "adapter", modules_to_save=["lm_head"])
    make_model(base, folder / "model")
    save(gemma3_with_vision, folder / "vision")
    make_adapter(folder / "vision", folder / "vision-adapter", target_modules=r".*language_model.*\.(q_proj|up_proj)")
    return folder


def rewritten(adapter: Path, folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    """A copy of an adapter with other tensors in its file."""
    shutil.copytree(adapter, folder)
    file = folder / "adapter_model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(file)).items()}, file)
    return folder


def renamed(adapter: Path, folder: Path, rename: Rename) -> Path:
    return rewritten(adapter, folder, lambda tensors: {rename(name): tensor for name, tensor in tensors.items()})


def named(name: str, adapter: str = "default") -> str:
    """As within a PeftModel, with the adapter's own name."""
    if "lora_" not in name:
        return name.replace("lm_head.weight", f"lm_head.modules_to_save.{adapter}.weight")
    return name.replace(".weight", f".{adapter}.weight")


ODD: dict[str, Rename] = {
    "prefix twice": lambda name: PREFIX + name,
    "prefix three times": lambda name: 2 * PREFIX + name,
    "compiled": lambda name: name.replace(PREFIX, f"{PREFIX}_orig_mod."),
    "compiled outside": lambda name: f"_orig_mod.{name}",
    "each layer compiled": lambda name: name.replace(".self_attn.", "._orig_mod.self_attn."),
    "FSDP and checkpointing": lambda name: (
        "_fsdp_wrapped_module." + name.replace(".mlp.", "._checkpoint_wrapped_module.mlp.")
    ),
    "DDP": lambda name: f"module.{name}",
    "default": named,
    "another name": lambda name: named(name, "sft"),
    "all of it": lambda name: f"module._orig_mod.{PREFIX}{named(name)}",
}


@pytest.mark.parametrize("how", ODD)
def test_names_that_can_mean_one_thing_are_read_so_and_said(models: Path, tmp_path: Path, how: str) -> None:
    adapter = renamed(models / "adapter", tmp_path / "odd", ODD[how])
    findings = check_branch(models / "base", adapter)
    assert findings.problems == []
    (warning,) = findings.warnings
    assert "read as base_model.model." in warning
    expected = dict(open_delta(models / "base", models / "adapter").tensors())
    found = dict(open_delta(models / "base", adapter).tensors())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert check_branch(models / "base", models / "adapter").warnings == []


def test_several_adapters_in_one_file_are_named(models: Path, tmp_path: Path) -> None:
    adapter = rewritten(
        models / "adapter",
        tmp_path / "two",
        lambda tensors: {
            named(name, who): tensor.clone() for name, tensor in tensors.items() for who in ("default", "ref")
        },
    )
    (problem,) = check_belongs(models / "base", adapter)
    assert "several adapters, default, ref" in problem
    assert "selected_adapters=['default']" in problem


def test_two_spellings_of_one_tensor_are_named(models: Path, tmp_path: Path) -> None:
    adapter = rewritten(
        models / "adapter",
        tmp_path / "twice",
        lambda tensors: tensors | {PREFIX + name: 2 * t for name, t in tensors.items()},
    )
    (problem,) = check_belongs(models / "base", adapter)
    assert "mean one tensor" in problem


@pytest.mark.parametrize(
    "empty",
    [
        lambda tensors: {name: torch.zeros(0) for name in tensors},
        lambda tensors: {name: torch.zeros(4, 0) if "lora_A" in name else torch.zeros(0, 4) for name in tensors},
        lambda tensors: {name: tensor if "lora_" in name else torch.zeros(0) for name, tensor in tensors.items()},
    ],
    ids=["flat", "two dimensions", "trained copies alone"],
)
def test_what_zero_3_left_empty_is_one_problem(
    models: Path, tmp_path: Path, empty: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> None:
    (problem,) = check_belongs(models / "base", rewritten(models / "adapter", tmp_path / "empty", empty))
    assert "tensors are empty" in problem
    assert "stage3_gather_16bit_weights_on_model_save" in problem


def test_an_empty_tensor_of_a_whole_model_is_the_same_problem(models: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(models / "model", tmp_path / "model"))
    tensors = weights(model) | {"lm_head.weight": torch.zeros(0)}
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    (problem,) = check_belongs(models / "base", model)
    assert f"1 of its {len(tensors)} tensors are empty (lm_head.weight)" in problem


def test_a_rank_of_zero_is_another_cause(models: Path, tmp_path: Path) -> None:
    def without_rank(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: (t[:0] if "lora_A" in name else t[:, :0]) if "lora_" in name else t for name, t in tensors.items()
        }

    (problem,) = check_belongs(models / "base", rewritten(models / "adapter", tmp_path / "extracted", without_rank))
    assert "rank 0" in problem
    assert "mergekit-extract-lora" in problem


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("model.language_model.", "model."),
        ("model.language_model.", "language_model.model."),
        ("model.language_model.", ""),
    ],
)
def test_text_names_fit_the_language_model_of_a_base_that_also_sees(
    models: Path, tmp_path: Path, old: str, new: str
) -> None:
    adapter = renamed(
        models / "vision-adapter", tmp_path / "text", lambda name: name.replace(f"{PREFIX}{old}", PREFIX + new)
    )
    findings = check_branch(models / "vision", adapter)
    assert findings.problems == []
    expected = dict(open_delta(models / "vision", models / "vision-adapter").tensors())
    found = dict(open_delta(models / "vision", adapter).tensors())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_an_adapter_of_a_base_that_also_sees_fits_its_text_model_alone(models: Path, tmp_path: Path) -> None:
    adapter = renamed(
        models / "adapter", tmp_path / "odd", lambda name: name.replace("model.layers", "model.language_model.layers")
    )
    findings = check_branch(models / "base", adapter)
    assert findings.problems == []
    assert f"model.language_model.layers… is taken for model.layers… of {models / 'base'}" in findings.warnings[0]


def test_where_it_fits_in_two_ways_none_is_taken(models: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(models / "base", tmp_path / "base"))
    own = weights(base)
    stacks = {name.replace("model.", f"{stack}.", 1): t.clone() for name, t in own.items() for stack in ("one", "two")}
    save_file(stacks, base / "model.safetensors", metadata={"format": "pt"})
    adapter = make_adapter(models / "base", tmp_path / "adapter", target_modules=["q_proj"])
    edit_config(adapter, base_model_name_or_path=None)
    (problem,) = check_belongs(base, adapter)
    assert "it would fit in 2 ways" in problem
    with pytest.raises(PaftError, match="does not have"):
        open_delta(base, adapter)


def test_layers_beyond_the_base_are_counted(models: Path, tmp_path: Path) -> None:
    deep = make_adapter(make_base(tmp_path / "deep", num_hidden_layers=5), tmp_path / "adapter")
    (problem,) = check_belongs(models / "base", deep)
    assert "it has 2 layers, and the adapter goes up to number 5" in problem


def test_misfits_of_one_kind_are_one_problem(models: Path, tmp_path: Path) -> None:
    wide = make_base(tmp_path / "wide", intermediate_size=40)
    (problem,) = check_belongs(wide, models / "adapter")
    assert "and 5 more do not fit either" in problem
