"""Every optimizer that axolotl offers and that runs here is given the gradient of L + λ‖δ‖₁, exactly once a step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from axolotl.utils.schemas.enums import CustomSupportedOptimizers
from transformers.training_args import OptimizerNames

from tests.end_to_end.replay import steps_of, why_not_penalised
from tests.end_to_end.runs import LORA
from tests.end_to_end.sweeps import STRENGTH, WITNESSED, train_all
from tests.offered import NEW_LINE
from tests.penalty.trainers import IN_BACKWARD

pytestmark = pytest.mark.slow
EPOCHS = {"schedule_free_radam": 8}  # RAdam stands still for the first five steps
OPTIMIZERS = {
    "adamw_torch": "AdamW",
    "adamw_torch_fused": "AdamW",
    "adamw_torch_8bit": "AdamW8bit",
    "adamw_torch_4bit": "AdamW4bit",
    "adamw_8bit": "AdamW",
    "adamw_bnb_8bit": "AdamW",
    "paged_adamw_32bit": "AdamW",
    "paged_adamw_8bit": "AdamW",
    "lion_32bit": "Lion",
    "lion_8bit": "Lion",
    "paged_lion_32bit": "Lion",
    "paged_lion_8bit": "Lion",
    "ademamix": "AdEMAMix",
    "ademamix_8bit": "AdEMAMix",
    "paged_ademamix_32bit": "AdEMAMix",
    "paged_ademamix_8bit": "AdEMAMix",
    "rmsprop_bnb": "RMSprop",
    "rmsprop_bnb_8bit": "RMSprop",
    "rmsprop_bnb_32bit": "RMSprop",
    "adafactor": "Adafactor",
    "adagrad": "Adagrad",
    "rmsprop": "RMSprop",
    "sgd": "SGD",
    "schedule_free_adamw": "AdamWScheduleFree",
    "schedule_free_radam": "RAdamScheduleFree",
    "schedule_free_sgd": "SGDScheduleFree",
    "ao_adamw_fp8": "AdamWFp8",
    "adopt_adamw": "ADOPT",
    "adamc": "AdamC",
    "muon": "Muon",
    **({"muon_8bit": "Muon8bit"} if NEW_LINE else {}),
    "sinkgd": "SinkGD",
}
PACKAGE = "needs a package that axolotl does not install"
GPU = f"{PACKAGE}, and a GPU"
NOT_HERE = {
    # These passed the test below, run once with their packages.
    **dict.fromkeys(["optimi_adamw", "came_pytorch", "grokadamw", "apollo_adamw"], PACKAGE),
    **dict.fromkeys(["galore_adamw", "galore_adafactor"], PACKAGE),
    # These have been read at most.
    **dict.fromkeys(["polora", "adamw_anyprecision", *(["scao"] if NEW_LINE else [])], PACKAGE),
    **dict.fromkeys(["stable_adamw", "galore_adamw_8bit", "q_galore_adamw8bit"], GPU),
    **dict.fromkeys(["flash_adamw", "flash_adam", "flash_sgd", "flash_sgdw", "flash_lion"], GPU),
    **dict.fromkeys(["adamw_torch_xla", "adamw_torch_npu_fused"], "needs a TPU or an NPU"),
    **dict.fromkeys(["ao_adamw_4bit", "ao_adamw_8bit"], "in axolotl's schema, but unknown to its builder"),
    "dion": "torch fails to compile its step on a CPU",
}


def test_every_optimizer_is_given_the_penalised_gradient_once(
    write_config: Callable[..., Path], base: Path, tmp_path: Path
) -> None:
    """Schedule-free ones keep several versions of the weights; the one that is saved is the one that `paft.json` tells of."""
    config = write_config(tmp_path, "optimizers", **WITNESSED, **LORA)
    epochs = {name: EPOCHS.get(name, 3) for name in OPTIMIZERS}
    runs = {name: {"optimizer": name, "num_epochs": epochs[name]} for name in OPTIMIZERS}
    # Muon compiles its step; held to AVX2 (ATEN_CPU_CAPABILITY), torch 2.13 makes NaN of it, with the penalty or without.
    outputs = train_all(config, runs, TORCHDYNAMO_DISABLE="1")
    problems = {name: why_not_penalised(base, outputs[name], STRENGTH, epochs[name]) for name in OPTIMIZERS}
    assert problems == {name: [] for name in OPTIMIZERS}
    assert {name: steps_of(outputs[name])[0].optimizer for name in OPTIMIZERS} == OPTIMIZERS


def test_no_optimizer_of_axolotl_went_unread() -> None:
    """One that a later version offers fails here, rather than being trained with unchecked."""
    offered = {one.value for one in (*OptimizerNames, *CustomSupportedOptimizers)}
    assert offered == {*OPTIMIZERS, *NOT_HERE, *IN_BACKWARD}
