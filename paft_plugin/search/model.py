"""The model whose scores are searched: loaded once, and turned in place into what a recipe merges."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from paft_plugin.errors import PaftError, some
from paft_plugin.evaluation.candidates import Candidate
from paft_plugin.evaluation.loading import load
from paft_plugin.evaluation.scorer import quiet, tokenise_once
from paft_plugin.fusion.merge import open_fusion

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM


class FusedModel:
    """The base model in memory, whose weights become those of any recipe.

    The tensors come from the engine of `axolotl paft merge`, one at a time, so they are the very ones that it would write:
    a random method draws the same masks. Those that no branch changes are copied rather than merged; nothing is written.

    Args:
        base: Folder of the base model.
        dtype: torch's name of the one in which the weights are scored.
        device: torch's name of it; merged and scored there.
        batch_size: Prompts at once.

    Raises:
        PaftError: The model cannot be loaded, or has no chat template.
    """

    def __init__(self, base: Path, dtype: str, device: str, batch_size: int) -> None:
        with quiet():
            self.lm: HFLM = load(Candidate("base", base), batch_size=batch_size, device=device, dtype=dtype)
        tokenise_once(self.lm)
        self._device = device
        self._parameters = _by_name(self.lm.model)

    def become(self, recipe: Path, seed: int) -> None:
        """Take on the weights that a recipe merges with a seed.

        Raises:
            PaftError: The recipe cannot be merged, or its tensors are not this model's.
        """
        given: set[int] = set()
        for name, tensor in open_fusion(recipe, seed, self._device).tensors():
            parameter = self._parameters.get(name)
            if parameter is None:
                raise PaftError(
                    f"{recipe}: {name} has another name or place once transformers has loaded the model, so merges of this "
                    "architecture cannot be tried in memory. Merge a few recipes with `axolotl paft merge` and score them."
                )
            if parameter.shape != tensor.shape:
                self._resize(tensor, name)
                parameter = self._parameters[name]
            parameter.data.copy_(tensor)
            given.add(parameter.data_ptr())
        # What is left out would keep the weights of an earlier trial.
        if left := [name for name, parameter in self._parameters.items() if parameter.data_ptr() not in given]:
            raise PaftError(f"{recipe}: merges no {some(sorted(left))}, which the model has.")

    def _resize(self, tensor: Tensor, name: str) -> None:
        """A recipe that names a tokenizer drops the padding rows of the vocabulary; so does the model, once and for all."""
        embedding = self.lm.model.get_input_embeddings().weight
        if tensor.shape[1:] != embedding.shape[1:] or tensor.shape[0] == embedding.shape[0]:
            raise PaftError(f"{name}: merged to shape {tuple(tensor.shape)}, which is not the base's.")
        self.lm.model.resize_token_embeddings(tensor.shape[0], mean_resizing=False)
        self._parameters = _by_name(self.lm.model)


def _by_name(model: torch.nn.Module) -> dict[str, Tensor]:
    """Every parameter by each name that a checkpoint may have for it: tied ones have several, and a prefix may be left out."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    named = dict(model.named_parameters(remove_duplicate=False))
    return {**{name.removeprefix(prefix): parameter for name, parameter in named.items()}, **named}
