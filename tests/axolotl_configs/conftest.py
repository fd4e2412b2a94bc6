"""Loads the shipped configs through axolotl itself, without the hub and without a GPU.

What is replaced: the base model (a folder with a `config.json` and a byte-level tokenizer that has the real one's special
tokens), the GPU that axolotl would ask torch for, and, where data is read, the data set (a local file whose rows have its exact
shape). What is left out: the debug log, and keeping prepared data.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

RTX_4090 = {"bf16": True, "fp8": True, "tf32": True, "n_gpu": 1, "compute_capability": "sm_89"}

LoadConfig = Callable[..., Any]


@pytest.fixture
def load_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoadConfig]:
    """`load_config(path, data=None)`: the config as `axolotl train` would see it, validated and normalised."""
    import axolotl.cli.config as axolotl_config
    import axolotl.utils.data.rl
    import axolotl.utils.data.sft
    import datasets
    import torch
    from axolotl.utils.dict import DictDefault

    from tests.axolotl_configs.stand_ins import make_base

    gc.freeze()  # axolotl's packing collects garbage for every batch: spare it all that has been imported
    versions = {"torch_version": torch.__version__.split("+")[0]}
    monkeypatch.setattr(axolotl_config, "gpu_capabilities", lambda: (dict(RTX_4090), versions))
    # The debug log takes the whole process's output over, for good.
    monkeypatch.setattr(axolotl_config, "prepare_debug_log", lambda _: None)
    # Prepared data is written by a process of its own, which takes longer than to prepare three rows.
    monkeypatch.setattr(axolotl.utils.data.sft, "save_preprocessed_dataset", lambda *_: None)
    monkeypatch.setattr(axolotl.utils.data.rl, "save_preprocessed_dataset", lambda *_: None)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def load(path: Path, data: Path | None = None) -> Any:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        raw["base_model"] = str(make_base(raw["base_model"], tmp_path))
        raw["output_dir"] = str(tmp_path / "output" / path.stem)
        if data is not None:
            # A file has one split, named train. Three rows leave nothing to hold out.
            raw["datasets"][0].update(path=str(data), split="train")
            raw.update(val_set_size=0, dataset_prepared_path=str(tmp_path / "prepared"))
        cfg = axolotl_config.load_cfg(DictDefault(raw))
        cfg.dataset_num_proc = None  # in this process: worker processes cost more than three rows
        return cfg

    yield load
    gc.unfreeze()
