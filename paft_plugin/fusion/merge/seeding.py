"""The random stream of a merge: the numbers that `mergekit-yaml --random-seed N` draws, for every tensor the same.

mergekit seeds once and draws tensor by tensor, so what else draws before shifts everything. That is PEFT: to write an
adapter out as a model, mergekit has it build LoRA layers, which PEFT initialises at random before it loads the trained
factors over them. (Only with an empty cache, as the recipes' own command has it: with a cache from an earlier run the
same seed draws other masks.) So here PEFT builds the same layers around a model without storage, and they are dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mergekit.common import ModelReference, get_auto_cls
from peft import PeftConfig, get_peft_model
from transformers.initialization import no_init_weights

from paft_plugin.fusion.merge.loaders import AdapterLoader, ModelLoader


class Stream:
    """A merge's stream, kept apart from what the rest of the process draws: neither disturbs the other.

    Args:
        seed: As `--random-seed`.
        loaders: Of all models in the recipe.
        device: Where the merge draws.
    """

    def __init__(self, seed: int, loaders: dict[ModelReference, ModelLoader], device: str) -> None:
        self._gpu = torch.device(device) if torch.device(device).type == "cuda" else None
        before = self._get()
        torch.manual_seed(seed)
        for reference, loader in loaders.items():
            if isinstance(loader, AdapterLoader):
                _draw_as_peft(reference, loader)
        self._state = self._get()
        self._set(before)

    @contextmanager
    def flowing(self) -> Iterator[None]:
        """In this context torch's global generators go on with the stream."""
        before = self._get()
        self._set(self._state)
        try:
            yield
        finally:
            self._state = self._get()
            self._set(before)

    def _get(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        return torch.get_rng_state(), torch.cuda.get_rng_state(self._gpu) if self._gpu is not None else None

    def _set(self, state: tuple[torch.Tensor, torch.Tensor | None]) -> None:
        torch.set_rng_state(state[0])
        if self._gpu is not None and state[1] is not None:
            torch.cuda.set_rng_state(state[1], self._gpu)


def _draw_as_peft(reference: ModelReference, loader: AdapterLoader) -> None:
    config = reference.config()
    with torch.random.fork_rng(devices=[]), torch.device("meta"), no_init_weights():
        skeleton = get_auto_cls(config.architectures[0]).from_config(config)
    adapter = PeftConfig.from_pretrained(str(loader.delta.branch))
    # That this is the adapter's base was checked by content; PEFT would warn of another name.
    skeleton.name_or_path = str(adapter.base_model_name_or_path or "")
    adapter.inference_mode = True
    get_peft_model(skeleton, adapter)
