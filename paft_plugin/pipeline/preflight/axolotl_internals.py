"""What preflight takes from inside axolotl, so that another release of it breaks this file and no other.

axolotl promises nobody these names; they are what `axolotl train` itself goes through before it loads a model, and there is no
public way to ask what it would make of a config. Checked with axolotl 0.19.0 and 0.21.0. Importing this costs seconds, and may
open the GPU: it is for the probe's process alone.
"""

from __future__ import annotations

from typing import Any

from axolotl.cli.config import gpu_capabilities, prepare_plugins
from axolotl.integrations.base import load_plugin
from axolotl.integrations.config import merge_input_args
from axolotl.loaders import load_processor, load_tokenizer
from axolotl.loaders.adapter import find_all_linear_names
from axolotl.prompt_strategies.dpo import load as load_dpo
from axolotl.prompt_strategies.kto import load as load_kto
from axolotl.prompt_strategies.orpo import load as load_orpo
from axolotl.utils.chat_templates import get_chat_template_from_config
from axolotl.utils.config import normalize_cfg_datasets, normalize_config, validate_config
from axolotl.utils.data.sft import _parse_dataset_type as parse_dataset_type
from axolotl.utils.data.shared import load_dataset_with_config
from axolotl.utils.data.wrappers import get_dataset_wrapper
from axolotl.utils.dict import DictDefault
from axolotl.utils.schemas.datasets import DPODataset, KTODataset

__all__ = [
    "DPODataset",
    "DictDefault",
    "KTODataset",
    "find_all_linear_names",
    "get_chat_template_from_config",
    "get_dataset_wrapper",
    "gpu_capabilities",
    "load_dataset_with_config",
    "load_dpo",
    "load_kto",
    "load_orpo",
    "load_plugin",
    "load_processor",
    "load_tokenizer",
    "merge_input_args",
    "normalize_cfg_datasets",
    "normalize_config",
    "parse_dataset_type",
    "preference_trainer",
    "prepare_plugins",
    "validate_config",
]


def preference_trainer(rl: str) -> Any:
    """The class whose code makes texts into tokens under `rl`; KTO makes them as DPO does."""
    from axolotl.core.trainers import AxolotlCPOTrainer, AxolotlORPOTrainer  # which costs seconds more
    from axolotl.core.trainers.dpo.trainer import AxolotlDPOTrainer

    return {"orpo": AxolotlORPOTrainer, "simpo": AxolotlCPOTrainer}.get(rl, AxolotlDPOTrainer)
