"""What holds between the shipped configs, read as plain YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.axolotl_configs.stand_ins import BASES, CONFIG_ROOT, CONFIGS

SFT = [path for path in CONFIGS if path.stem.startswith("sft")]
PREFERENCE = [path for path in CONFIGS if path not in SFT]
SHARED = (
    "base_model",
    "chat_template",
    "special_tokens",
    "sequence_len",
    "bf16",
    "tf32",
    "attn_implementation",
    "gradient_checkpointing",
    "gradient_checkpointing_kwargs",
    "seed",
)
ADAPTER_SHAPE = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_linear")


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def test_every_base_has_both_branches() -> None:
    for folder in {path.parent for path in CONFIGS}:
        methods = {path.stem for path in folder.glob("*-*.yml")}
        assert {"sft-l1-lora", "sft-l1-qlora", "dpo-lora", "orpo-lora"} <= methods, folder.name
    assert {read(path)["base_model"] for path in CONFIGS} == set(BASES)


@pytest.mark.parametrize("path", SFT, ids=name_of)
def test_sft_is_penalised(path: Path) -> None:
    config = read(path)
    assert config["plugins"] == ["paft_plugin.PAFTPlugin"]
    assert isinstance(config["paft_l1_lambda"], float), "YAML reads 1e-6 as a string: write 1.0e-6"
    assert config["paft_l1_lambda"] > 0
    assert 1e-5 in config["paft_sparsity_thresholds"]
    assert config["weight_decay"] == 0, "weight decay would shrink the delta beside the penalty"


@pytest.mark.parametrize("path", PREFERENCE, ids=name_of)
def test_preference_configs_are_stock_axolotl(path: Path) -> None:
    config = read(path)
    assert config["rl"] == path.stem.split("-")[0]
    assert "plugins" not in config
    assert not [key for key in config if "paft" in key]


@pytest.mark.parametrize("folder", sorted({path.parent for path in CONFIGS}), ids=lambda folder: folder.name)
def test_branches_of_one_base_fit_together(folder: Path) -> None:
    configs = [read(path) for path in sorted(folder.glob("*-*.yml"))]
    for key in SHARED:
        assert all(config.get(key) == configs[0][key] for config in configs), key
    adapted = [config for config in configs if "adapter" in config]
    for key in ADAPTER_SHAPE:
        assert all(config[key] == adapted[0][key] for config in adapted), key


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_name_says_what_the_config_does(path: Path) -> None:
    config = read(path)
    kind = path.stem.rsplit("-", 1)[1]
    assert config.get("adapter") == (None if kind == "full" else kind)
    assert config.get("load_in_4bit", False) == (kind == "qlora")
    assert config["output_dir"] == f"./outputs/{name_of(path)}"
    assert path.read_text(encoding="utf-8").splitlines()[2].endswith(f"axolotl_configs/{name_of(path)}.yml")


def test_keys_come_in_one_order() -> None:
    """No two configs have two keys in opposite order, so that any two can be compared side by side."""
    after: dict[str, set[str]] = {}
    for path in CONFIGS:
        keys = list(read(path))
        for index, key in enumerate(keys):
            after.setdefault(key, set()).update(keys[index + 1 :])
    assert not [(a, b) for a in after for b in after[a] if a in after[b]]


def test_readme_lists_every_config() -> None:
    table = [line for line in (CONFIG_ROOT / "README.md").read_text(encoding="utf-8").splitlines() if ".yml)" in line]
    listed = [line.split("](", 1)[1].split(")", 1)[0] for line in table]
    assert sorted(listed) == sorted(f"{name_of(path)}.yml" for path in CONFIGS)


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_memory_estimate_is_the_readmes(path: Path) -> None:
    """The estimate stands in two places, the config's head and the README's table."""
    readme = (CONFIG_ROOT / "README.md").read_text(encoding="utf-8")
    row = next(line for line in readme.splitlines() if f"({name_of(path)}.yml)" in line)
    estimate = path.read_text(encoding="utf-8").splitlines()[1].split("about ")[1].split(" GiB")[0]
    assert f"| {estimate} |" in row
