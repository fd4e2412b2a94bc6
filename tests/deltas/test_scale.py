"""The scale of each module is PEFT's own, for any patterns, ranks and alphas that a config can hold."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from safetensors.torch import save_file

from paft_plugin.deltas.adapter import Adapter, open_adapter
from paft_plugin.deltas.store import TensorStore
from paft_plugin.errors import PaftError
from tests.deltas.builders import edit_config, load_peft, make_adapter, make_base

PROJECTIONS = ["q_proj", "k_proj", "up_proj", "down_proj"]
PIECES = [
    *PROJECTIONS,
    "self_attn",
    "mlp",
    "layers",
    "0",
    "1",
    ".",
    r"\.",
    ".*",
    "(q|k)_proj",
    "[01]",
    "^",
    "model",
    "x",
]
PATTERNS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map("".join)
ALPHAS = st.integers(0, 64) | st.floats(0, 64)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_adapter(make_base(folder / "base"), folder / "adapter", target_modules=PROJECTIONS)
    return folder


def peft_scales(model: PeftModel) -> dict[str, float]:
    return {
        name.removeprefix("base_model.model."): layer.scaling["default"]
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }


@settings(deadline=None, derandomize=True, database=None)
@given(
    alpha=ALPHAS,
    alpha_pattern=st.dictionaries(PATTERNS, ALPHAS, max_size=4),
    rank_pattern=st.dictionaries(PATTERNS, st.integers(1, 8), max_size=4),
    use_rslora=st.booleans(),
)
def test_scale_is_pefts(
    alpha: float, alpha_pattern: dict[str, float], rank_pattern: dict[str, int], use_rslora: bool
) -> None:
    """Patterns are tried in their order, from the start of the name or of one of its parts, up to its end."""
    block = torch.nn.ModuleDict({name: torch.nn.Linear(8, 8, bias=False) for name in PROJECTIONS})
    layers = torch.nn.ModuleList([torch.nn.ModuleDict({"self_attn": block})])
    model = torch.nn.ModuleDict({"model": torch.nn.ModuleDict({"layers": layers})})
    chosen: dict[str, Any] = {"lora_alpha": alpha, "use_rslora": use_rslora}
    patterns = {"alpha_pattern": alpha_pattern, "rank_pattern": rank_pattern}
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=PROJECTIONS, **chosen, **patterns))
    expected = peft_scales(adapted)
    ranks = {
        name.removeprefix("base_model.model."): layer.r["default"]
        for name, layer in adapted.named_modules()
        if isinstance(layer, LoraLayer)
    }
    config = {"r": 4, **chosen, **patterns}
    adapter = Adapter(Path(), config, TensorStore(Path(), []))
    assert {name: adapter.scale_of(name, rank) for name, rank in ranks.items()} == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"lora_alpha": 0},
        {"lora_alpha": 0.5},
        {"alpha_pattern": {"q_proj": 0}},
        {"alpha_pattern": None, "rank_pattern": None},
        {"use_rslora": None},
    ],
)
def test_values_at_the_edge_scale_as_peft_loads_them(models: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    adapter = make_adapter(models / "base", tmp_path / "adapter", target_modules=PROJECTIONS)
    edit_config(adapter, **changes)
    opened = open_adapter(adapter)
    scales = {name: opened.scale(name) for name in opened.factors}
    if None in changes.values():
        edit_config(adapter, **{key: value or {} for key, value in changes.items() if key != "use_rslora"})
    assert scales == peft_scales(load_peft(models / "base", adapter))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"alpha_pattern": {"q_proj(": 1}}, "'q_proj(' is no regular expression"),
        ({"alpha_pattern": {"q_proj": "8"}}, "has the value '8', which is no finite number"),
        ({"alpha_pattern": ["q_proj"]}, "alpha_pattern has the value ['q_proj'], which is of a wrong kind"),
        ({"lora_alpha": None}, "lora_alpha is missing"),
    ],
)
def test_values_that_no_scale_can_be_made_of_are_refused(
    models: Path, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    adapter = make_adapter(models / "base", tmp_path / "adapter", target_modules=PROJECTIONS)
    edit_config(adapter, **changes)
    with pytest.raises(PaftError, match=re.escape(says)):
        open_adapter(adapter)


def test_the_rank_is_that_of_the_factors(models: Path, tmp_path: Path) -> None:
    """A config whose `r` was edited after training doesn't change what was trained."""
    adapter = make_adapter(models / "base", tmp_path / "adapter", target_modules=PROJECTIONS)
    before = open_adapter(adapter).scale("model.layers.0.self_attn.q_proj")
    edit_config(adapter, r=1)
    assert open_adapter(adapter).scale("model.layers.0.self_attn.q_proj") == before == 2.0
    save_file({}, adapter / "adapter_model.safetensors")
    with pytest.raises(PaftError, match="holds no tensors"):
        open_adapter(adapter)
