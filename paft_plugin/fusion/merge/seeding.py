"""The random stream of a merge: the numbers that `mergekit-yaml --random-seed N` draws, for every tensor the same.

mergekit seeds once and draws tensor by tensor, so what else draws before shifts everything. That is PEFT: to write an
adapter out as a model, mergekit has it build LoRA layers, which PEFT initialises at random before it loads the trained
factors over them. (Only with an empty cache, as the recipes' own command has it: with a cache from an earlier run the
same seed draws other masks.) So here PEFT builds the same layers around a model without storage, and they are dropped.
"""

from __future__ import annotations

import torch
import transformers
from mergekit.common import ModelReference, get_auto_cls
from peft import PeftConfig, get_peft_model
from transformers.initialization import no_init_weights

from paft_plugin.fusion.merge.loaders import AdapterLoader, ModelLoader


def seed_like_mergekit(seed: int, loaders: dict[ModelReference, ModelLoader]) -> None:
    """Seed Python, NumPy and torch as mergekit does, and draw what PEFT draws until mergekit comes to its first tensor."""
    transformers.set_seed(seed)
    for reference, loader in loaders.items():
        if isinstance(loader, AdapterLoader):
            _draw_as_peft(reference, loader)


def _draw_as_peft(reference: ModelReference, loader: AdapterLoader) -> None:
    config = reference.config()
    with torch.random.fork_rng(devices=[]), torch.device("meta"), no_init_weights():
        skeleton = get_auto_cls(config.architectures[0]).from_config(config)
    adapter = PeftConfig.from_pretrained(str(loader.delta.branch))
    adapter.inference_mode = True
    get_peft_model(skeleton, adapter)
