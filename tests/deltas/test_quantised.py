"""A quantised base is known by its config, companions or a single packed weight, never by what most of it is stored as."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from paft_plugin.deltas.belongs import check_belongs, check_branch
from paft_plugin.deltas.delta import open_delta
from paft_plugin.deltas.quantised import quantised, without_twin
from paft_plugin.deltas.store import open_model
from paft_plugin.errors import PaftError
from tests.deltas.builders import edit_config, make_adapter, make_base, make_model, weights

VOCABULARY = 2048  # so that the embeddings, which stay whole, have most of the entries


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_adapter(make_base(folder / "base", vocab_size=VOCABULARY, dtype=torch.bfloat16), folder / "adapter")
    make_model(folder / "base", folder / "model")
    return folder


def fp8(name: str, weight: Tensor) -> dict[str, Tensor]:
    scale = weight.float().abs().max() / 448
    return {name: (weight.float() / scale).to(torch.float8_e4m3fn), f"{name}_scale_inv": scale.view(1, 1)}


def compressed_tensors(name: str, weight: Tensor) -> dict[str, Tensor]:
    packed, scale = fp8(name, weight).values()
    return {name: packed, f"{name}_scale": scale}


def bitsandbytes(name: str, weight: Tensor) -> dict[str, Tensor]:
    state = {"absmax": torch.ones(4), "quant_map": torch.ones(16)}
    packed = torch.zeros(weight.numel() // 2, 1, dtype=torch.uint8)
    return {name: packed} | {f"{name}.{key}": tensor for key, tensor in state.items()}


def int8(name: str, weight: Tensor) -> dict[str, Tensor]:
    return {name: weight.to(torch.int8), name.replace("weight", "SCB"): torch.ones(weight.shape[0])}


def gptq(name: str, weight: Tensor) -> dict[str, Tensor]:
    module, (rows, columns) = name.removesuffix(".weight"), weight.shape
    return {
        f"{module}.qweight": torch.zeros(columns // 8, rows, dtype=torch.int32),
        f"{module}.scales": torch.ones(1, rows).half(),
    }


def mxfp4(name: str, _weight: Tensor) -> dict[str, Tensor]:
    module = name.removesuffix(".weight")
    return {
        f"{module}_blocks": torch.zeros(8, 16, dtype=torch.uint8),
        f"{module}_scales": torch.zeros(8, 2, dtype=torch.uint8),
    }


def hqq(name: str, _weight: Tensor) -> dict[str, Tensor]:
    return {name.replace("weight", "W_q"): torch.zeros(8, 8, dtype=torch.uint8)}


Packed = Callable[[str, Tensor], dict[str, Tensor]]
KINDS: dict[str, tuple[Packed, dict[str, object]]] = {
    "fp8": (fp8, {"quant_method": "fp8", "fmt": "e4m3"}),
    "compressed-tensors": (compressed_tensors, {"quant_method": "compressed-tensors", "format": "float-quantized"}),
    "bitsandbytes, 4 bits": (bitsandbytes, {"load_in_4bit": True}),
    "bitsandbytes, 8 bits": (int8, {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    "gptq, 4 bits": (gptq, {"quant_method": "gptq", "bits": 4}),
    "mxfp4": (mxfp4, {"quant_method": "mxfp4"}),
    "hqq": (hqq, {"quant_method": "hqq"}),
}


def pack(base: Path, folder: Path, how: Packed, modules: str = "_proj", **config: object) -> Path:
    """A copy of a base whose weights of some modules are packed."""
    shutil.copytree(base, folder)
    tensors: dict[str, Tensor] = {}
    for name, tensor in weights(base).items():
        tensors |= how(name, tensor) if modules in name else {name: tensor}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    edit_config(folder, "config.json", **config)
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("told", [True, False], ids=["config says so", "config is silent"])
def test_a_quantised_base_is_refused_in_one_line(models: Path, tmp_path: Path, kind: str, told: bool) -> None:
    how, config = KINDS[kind]
    base = pack(models / "base", tmp_path / "base", how, **({"quantization_config": config} if told else {}))
    assert open_model(base).main_dtype == "BF16"
    for branch in ("adapter", "model"):
        (problem,) = check_belongs(base, models / branch)
        assert problem.startswith(f"{base}: a quantised model (")
        assert "Give the 16-bit original" in problem
        assert (kind in problem) == told
        with pytest.raises(PaftError, match="a quantised model"):
            open_delta(base, models / branch)


def test_one_packed_weight_is_enough(models: Path, tmp_path: Path) -> None:
    def cast(name: str, weight: Tensor) -> dict[str, Tensor]:
        return {name: weight.to(torch.float8_e5m2)}

    base = pack(models / "base", tmp_path / "base", cast, "layers.1.mlp.up_proj")
    (problem,) = check_belongs(base, models / "adapter")
    assert "model.layers.1.mlp.up_proj.weight is stored as F8_E5M2" in problem


def test_a_quantised_branch_is_refused_too(models: Path, tmp_path: Path) -> None:
    (problem,) = check_belongs(models / "base", pack(models / "model", tmp_path / "model", fp8))
    assert problem.startswith(f"{tmp_path / 'model'}: a quantised model (")


def test_whole_weights_whose_config_says_otherwise_are_no_base_either(models: Path, tmp_path: Path) -> None:
    """The merged model would be loaded by that config."""
    base = Path(shutil.copytree(models / "base", tmp_path / "base"))
    edit_config(base, "config.json", text_config={"quantization_config": {"quant_method": "awq"}})
    (problem,) = check_belongs(base, models / "adapter")
    assert "says that it is quantised (awq), but none of its tensors is" in problem
    assert "delete quantization_config" in problem


def test_masks_indices_and_scales_of_whole_models_are_not_taken_for_packed_weights(
    models: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(models / "base", tmp_path / "base"))
    others = {
        "model.layers.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8),
        "vision.position_ids": torch.arange(9)[None],
        "vision.layer_scale": torch.ones(3),
        "logit_scale": torch.tensor(1.0),
        "steps": torch.tensor([3], dtype=torch.int32),
    }
    save_file(weights(base) | others, base / "model.safetensors", metadata={"format": "pt"})
    edit_config(base, "config.json", quantization_config=None)
    assert quantised(open_model(base)) == []
    copy = Path(shutil.copytree(base, tmp_path / "copy"))
    assert {name for name, _ in open_delta(base, copy).tensors()} == weights(models / "base").keys() | {
        "vision.layer_scale",
        "logit_scale",
    }


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("unsloth/Llama-3.2-1B-unsloth-bnb-4bit", "original, unsloth/Llama-3.2-1B."),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "original, Qwen/Qwen2.5-7B-Instruct."),
        ("openai/gpt-oss-20b", "original (its config.json names openai/gpt-oss-20b)."),
        (None, "Give the 16-bit original."),
    ],
)
def test_the_original_is_named_where_the_config_tells(
    models: Path, tmp_path: Path, said: str | None, hint: str
) -> None:
    base = pack(models / "base", tmp_path / "base", fp8, _name_or_path=said)
    assert check_belongs(base, models / "adapter")[0].endswith(hint)


@pytest.mark.parametrize(
    "name", ["Qwen/Qwen3-8B", "microsoft/bitnet-b1.58-2B-4T", "a/quantized-thoughts-7b", "mistral-unsloth"]
)
def test_a_name_without_such_a_tail_is_left_alone(name: str) -> None:
    assert without_twin(name) == name


@pytest.mark.parametrize(
    "said",
    [
        "unsloth/llama-3.2-1b-unsloth-bnb-4bit",
        "unsloth/Llama-3.2-1B-bnb-4bit",
        "x/Llama-3.2-1B-GPTQ-Int4",
        "x/Meta-Llama-3.2-1B-AWQ",
    ],
)
def test_an_adapter_of_a_quantised_copy_belongs_with_a_word(models: Path, tmp_path: Path, said: str) -> None:
    base = Path(shutil.copytree(models / "base", tmp_path / "Llama-3.2-1B"))
    adapter = Path(shutil.copytree(models / "adapter", tmp_path / "adapter"))
    edit_config(adapter, base_model_name_or_path=said)
    findings = check_branch(base, adapter)
    assert findings.problems == []
    assert f"trained on {said}, a quantised copy of {base}" in findings.warnings[0]
    edit_config(adapter, base_model_name_or_path=said.replace("3.2", "3.1"))
    assert "Give that base" in check_branch(base, adapter).problems[0]


def test_a_quantised_copy_that_is_here_is_known_by_its_config(models: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(models / "base", tmp_path / "Llama-3.2-1B"))
    twin = pack(models / "base", tmp_path / "twin", bitsandbytes, _name_or_path="unsloth/Llama-3.2-1B-bnb-4bit")
    adapter = Path(shutil.copytree(models / "adapter", tmp_path / "adapter"))
    edit_config(adapter, base_model_name_or_path=str(twin))
    assert "a quantised copy" in check_branch(base, adapter).warnings[0]
    config = json.loads((twin / "config.json").read_text())
    (twin / "config.json").write_text(json.dumps(config | {"_name_or_path": "other/Model-bnb-4bit"}))
    assert "Give that base" in check_branch(base, adapter).problems[0]
