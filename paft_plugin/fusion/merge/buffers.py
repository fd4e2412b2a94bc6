"""Tensors that old checkpoints hold and new ones don't: mergekit's definitions still ask for them.

transformers computes GPT-NeoX's causal mask and rotary frequencies anew, and saves them no more; mergekit 0.1.5 refuses a
checkpoint without them.
"""

from __future__ import annotations

from mergekit.architecture import ModelArchitecture
from mergekit.architecture.json_definitions import JsonModuleArchitecture

BUFFERS = (".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")


def without_old_buffers(architecture: ModelArchitecture) -> ModelArchitecture:
    """The architecture with such tensors merged where they are, and not missed where they aren't."""
    modules = {}
    for name, module in architecture.modules.items():
        inside = module.architecture
        if isinstance(inside, JsonModuleArchitecture):
            weights = [
                weight.model_copy(update={"optional": True}) if weight.name.endswith(BUFFERS) else weight
                for weight in inside.definition.layer_templates.weights
            ]
            if weights != inside.definition.layer_templates.weights:
                templates = inside.definition.layer_templates.model_copy(update={"weights": weights})
                definition = inside.definition.model_copy(update={"layer_templates": templates})
                module = module.model_copy(
                    update={"architecture": inside.model_copy(update={"definition": definition})}
                )
        modules[name] = module
    return architecture.model_copy(update={"modules": modules})
