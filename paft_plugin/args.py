"""The `paft_*` keys of an axolotl config, with their checks.

axolotl keeps a plugin's keys in its schema for every later config of the process (a sweep, a notebook), so each config is first
asked whether it is ours: one that neither names the plugin nor has a `paft_*` key leaves here as if there were no plugin.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ModelWrapValidatorHandler, model_validator

from paft_plugin.errors import closest, raise_if_any
from paft_plugin.penalty.support import why_not_optimizer, why_not_proximal

DEFAULT_SEED = 42  # what axolotl takes when a config names none (`set_default_seed` in its schema)
DEFAULT_START = 1e-5  # λ where a controller starts; it soon moves it to where it matters
PLUGIN_NAMES = {"paft_plugin.PAFTPlugin", "paft_plugin.plugin.PAFTPlugin"}
"""What `plugins` may call it by; axolotl takes a colon for the last dot as well."""

STRATEGIES = ("dpo", "orpo", "simpo", "kto", "ipo")
"""Values of `rl` that train a preference branch."""
STEERED = ("paft_target_sparsity", "paft_max_loss_increase")
"""Keys by which a controller moves λ."""
STRENGTHS = ("paft_l1_lambda", *STEERED, "paft_l2_lambda")
"""Keys of which one has to be set."""
OF_L1 = {
    "paft_l1_on": "delta",
    "paft_l1_mode": "subgradient",
    "paft_l1_warmup_ratio": 0.0,
    "paft_l1_from": 0.0,
    "paft_l1_until": 1.0,
}
"""Keys that say how the L1 penalty is to be, and how it is where they don't."""

Share = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
Size = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class PAFTArgs(BaseModel):
    """What an axolotl config may say to the plugin; axolotl merges these fields into its own schema."""

    paft_l1_lambda: Size | None = Field(
        default=None,
        description="Strength λ of the penalty λ‖δ‖₁ on the delta. 0 only measures. With a target: where λ starts.",
    )
    paft_l1_on: Literal["delta", "factors"] = Field(
        default="delta",
        description="What the norm is taken of: the delta (‖s·BA‖₁ with LoRA, ‖θ−θ_pre‖₁ without), or ‖A‖₁ + ‖B‖₁.",
    )
    paft_l1_mode: Literal["subgradient", "proximal"] = Field(
        default="subgradient",
        description="subgradient: the paper's, part of the gradient. proximal: soft-thresholding of the delta after each "
        "optimizer step by λ × learning rate, which leaves exact zeros; for full fine-tuning and paft_l1_on: factors.",
    )
    paft_l2_lambda: Size | None = Field(
        default=None,
        description="Strength λ₂ of a penalty λ₂‖δ‖₂² on the delta, beside L1 or alone: a delta that is small, not sparse.",
    )
    paft_l1_warmup_ratio: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = Field(
        default=0.0,
        description="Share of the steps over which λ rises linearly to paft_l1_lambda.",
    )
    paft_target_sparsity: Share | None = Field(
        default=None,
        description="Sparsity at paft_target_threshold that the delta shall end at: a controller moves λ during training.",
    )
    paft_target_threshold: Size = Field(
        default=1e-5,
        description="The threshold that paft_target_sparsity refers to.",
    )
    paft_max_loss_increase: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=None,
        description="Nats a token that the task loss may be above paft_reference_loss: a controller makes the delta as sparse "
        "as that allows. With a target sparsity the target is a wish and the bound comes first.",
    )
    paft_reference_loss: float | str | None = Field(
        default=None,
        description="What the loss is without a penalty: the trainer_state.json, or the folder, of the same training (same "
        "data, seed, steps) without it, which is compared with step by step; or a number, that of its end.",
    )
    paft_l1_from: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = Field(
        default=0.0,
        description="Share of the run before which there is no L1 penalty.",
    )
    paft_l1_until: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = Field(
        default=1.0,
        description="Share of the run after which there is no L1 penalty and what is zero stays zero; for full fine-tuning, "
        "and for factors in proximal mode.",
    )
    paft_reference: Literal["device", "host", "auto"] = Field(
        default="auto",
        description="Where θ_pre of what is trained in full is kept: beside the parameters, in pinned host memory from which "
        "it is streamed block by block, or on the device if it fits there.",
    )
    paft_sparsity_thresholds: list[Size] = Field(
        default=[1e-5],
        min_length=1,
        description="Sparsity is the share of entries with |δ| ≤ threshold; it is logged and recorded for each of these.",
    )
    paft_inspect_steps: Annotated[int, Field(ge=1, strict=True)] | None = Field(
        default=None,
        description="Optimizer steps between two inspections of the delta, each logged by kind of module, with a histogram "
        "where the logger takes one; the last step is inspected as well. Left out: none.",
    )

    @model_validator(mode="wrap")
    @classmethod
    def check(cls, data: Any, handler: ModelWrapValidatorHandler[PAFTArgs]) -> PAFTArgs:
        """Refuse what axolotl would drop in silence, and settings under which the penalty is not that of the delta."""
        named = isinstance(data, dict) and names_plugin(data)
        if named:
            raise_if_any(misspelt_keys(data, set(cls.model_fields)))
        elif isinstance(data, dict):
            raise_if_any(unused_keys(data))
        args = handler(data)
        if named:
            raise_if_any(wrong_run(dict(args)))
        else:
            for key in PAFTArgs.model_fields:
                setattr(args, key, None)  # the defaults are of no concern to a config that isn't ours
        return args


def names_plugin(config: Mapping[str, Any]) -> bool:
    """Whether a config's own `plugins` names PAFTPlugin, however many others axolotl may know from earlier configs."""
    return any(map(is_plugin, config.get("plugins") or []))


def is_plugin(name: Any) -> bool:
    """Whether an entry of `plugins` is PAFTPlugin."""
    return str(name).replace(":", ".") in PLUGIN_NAMES


def unused_keys(config: Mapping[str, Any]) -> list[str]:
    """A problem if a config that does not name the plugin says something to it all the same."""
    keys = [str(key) for key, value in config.items() if str(key).startswith("paft_") and value is not None]
    if not keys:
        return []
    return [
        f"{', '.join(keys)}: plugins does not name paft_plugin.PAFTPlugin here, so there would be no penalty: add it, or "
        "remove the paft_* keys"
    ]


def misspelt_keys(keys: Iterable[str], known: set[str]) -> list[str]:
    """A problem for each key that looks like one of ours but isn't: `paft_lamda`, `l1_lambda`, `pfat_l1_on` …

    Args:
        keys: the keys of the raw config.
        known: every key that the whole schema knows, axolotl's own included.
    """
    ours = list(PAFTArgs.model_fields)
    problems = []
    for key in keys:
        if not isinstance(key, str) or key in known:
            continue
        plain = re.sub(r"[^a-z0-9]+", "_", key.lower())
        meant = closest(plain, ours, 0.8)
        if meant is None and (bare := closest(plain, [name.removeprefix("paft_") for name in ours], 0.8)):
            meant = f"paft_{bare}"
        if meant is None and plain.startswith("paft"):
            meant = closest(plain, ours)
            if meant is None:
                problems.append(f"{key}: no such key; the plugin's keys are {', '.join(ours)}")
        if meant is not None:
            problems.append(f"{key}: no such key; did you mean {meant}?")
    return problems


def wrong_run(config: dict[str, Any]) -> list[str]:
    """A problem for each setting of a merged config under which the penalty would not be that of the delta."""
    if all(config.get(key) is None for key in STRENGTHS):
        return [
            "paft_l1_lambda is not set though plugins names paft_plugin.PAFTPlugin: set it (0 only measures), or set "
            "paft_target_sparsity or paft_l2_lambda"
        ]
    return [
        *_wrong_strength(config),
        *_wrong_kind_of_training(config),
        *_wrong_delta(config),
        *_wrong_parallelism(config),
        *_wrong_optimizer(config),
    ]


def _wrong_strength(config: dict[str, Any]) -> list[str]:
    problems = _wrong_bound(config)
    steering = [key for key in STEERED if config.get(key) is not None]
    if not steering and config.get("paft_l1_lambda") is None:
        return problems + [
            f"{key}: there is no L1 penalty without paft_l1_lambda or paft_target_sparsity: set one, or remove {key}"
            for key, usual in OF_L1.items()
            if config.get(key) not in (None, usual)
        ]
    refers = [key for key in (*STEERED, "paft_l1_until") if config.get(key) not in (None, 1)]
    if (
        config.get("paft_target_threshold") not in (None, PAFTArgs.model_fields["paft_target_threshold"].default)
        and not refers
    ):
        problems.append(
            "paft_target_threshold: nothing refers to it: set paft_target_sparsity, or name it under paft_sparsity_thresholds"
        )
    if (config.get("paft_l1_from") or 0) >= (config.get("paft_l1_until") or 1):
        problems.append("paft_l1_from: the penalty would end before it begins: give a smaller one than paft_l1_until")
    if steering and config.get("paft_l1_lambda") == 0:
        problems.append("paft_l1_lambda: 0: a controller moves λ by factors, so it can't start at 0: leave it out")
    if steering and config.get("paft_l1_warmup_ratio"):
        problems.append(f"paft_l1_warmup_ratio: with {steering[0]} the controller moves λ: remove one of them")
    return problems


def _wrong_bound(config: dict[str, Any]) -> list[str]:
    bound, reference = config.get("paft_max_loss_increase"), config.get("paft_reference_loss")
    if bound is not None and reference is None:
        return [
            "paft_max_loss_increase: over what? Set paft_reference_loss: the folder of the same training without the penalty "
            "(`axolotl paft run` does so by itself), or a number"
        ]
    if bound is None and reference is not None:
        return ["paft_reference_loss: nothing is compared with it: set paft_max_loss_increase, or remove it"]
    return []


def _wrong_kind_of_training(config: dict[str, Any]) -> list[str]:
    problems = []
    for key in ("rl", "reward_model", "process_reward_model"):
        value = getattr(config.get(key), "value", config.get(key))
        if value and not (key == "rl" and value in STRATEGIES):
            problems.append(
                f"{key}: {value}: the penalty belongs to the SFT branch, and for experiments to a preference branch of rl: "
                f"{', '.join(STRATEGIES)}: remove paft_plugin.PAFTPlugin and the paft_* keys here"
            )
    if config.get("rl"):
        problems += [
            f"{key}: in a preference training the penalty has been tried with one process or DDP alone: remove it"
            for key in ("fsdp", "fsdp_config", "deepspeed")
            if config.get(key)
        ]
    return problems


def _wrong_delta(config: dict[str, Any]) -> list[str]:
    problems = []
    adapter = config.get("adapter")
    if adapter not in (None, "lora", "qlora"):
        problems.append(f"adapter: {adapter}: its delta is not s·BA; use lora, qlora, or none for full fine-tuning")
    if adapter is None and config.get("paft_l1_on") == "factors":
        problems.append("paft_l1_on: factors: there are no factors A and B without an adapter: use delta")
    if adapter is not None and config.get("paft_l1_mode") == "proximal" and config.get("paft_l1_on") != "factors":
        problems.append(
            "paft_l1_mode: proximal: the norm of a product s·BA has no proximal step: set paft_l1_on: factors, or train "
            "without an adapter"
        )
    in_factors = config.get("paft_l1_on") == "factors" and config.get("paft_l1_mode") == "proximal"
    if adapter is not None and (config.get("paft_l1_until") or 1) < 1 and not in_factors:
        problems.append(
            f"paft_l1_until: {config['paft_l1_until']}: entries of a product s·BA can't be held at zero one by one: set "
            "paft_l1_on: factors and paft_l1_mode: proximal, or train without an adapter"
        )
    reasons = {
        "relora": "ReLoRA folds s·BA into the base while it trains, so δ is more than s·BA",
        "peft_use_dora": "under DoRA the delta is not s·BA",
        "loftq_config": "LoftQ moves the base weights and starts from δ ≠ 0",
        "lisa_step_interval": "LISA trains other layers at other times, so δ is not that of one set of parameters",
        "fix_untrained_tokens": "it edits embeddings behind θ_pre's back",
        "reinit_weights": "it starts from random weights, so δ is not θ − θ_pre of the base model",
        "hatchery": "it trains on a remote service, which the penalty does not reach",
        "llmcompressor": "its masks edit the weights after each optimizer step, behind the penalty's back",
    }
    # axolotl's peft section holds the LoftQ settings.
    present = dict(config, loftq_config=getattr(config.get("peft"), "loftq_config", None))
    problems += [f"{key}: {reason}: remove it" for key, reason in reasons.items() if present.get(key)]
    start = config.get("peft_init_lora_weights")
    if start not in (None, True, "gaussian"):
        problems.append(f"peft_init_lora_weights: {start}: δ must be zero at the start: use true or gaussian")
    return problems


def _wrong_parallelism(config: dict[str, Any]) -> list[str]:
    problems = []
    nested = config.get("fsdp_config")
    version = config.get("fsdp_version") or getattr(nested, "fsdp_version", None) or 1
    if (config.get("fsdp") or nested) and version != 2:
        problems.append(
            "fsdp_version: FSDP1 flattens parameters into one vector, in which δ has no tensors: set fsdp_version: 2"
        )
    for key in ("tensor_parallel_size", "context_parallel_size", "expert_parallel_size"):
        if (config.get(key) or 1) > 1:
            problems.append(
                f"{key}: {config[key]}: the penalty covers data parallelism only (DDP, fsdp_version: 2, DeepSpeed ZeRO-1 "
                "and 2): remove it"
            )
    if config.get("deepspeed") and config.get("lora_fp32_gradients"):
        problems.append(
            "lora_fp32_gradients: with DeepSpeed it changes what gradients are kept in, where the penalty has not been tried: "
            "remove it, or use fsdp_version: 2"
        )
    return problems


def _wrong_optimizer(config: dict[str, Any]) -> list[str]:
    name = str(getattr(config.get("optimizer"), "value", config.get("optimizer") or ""))
    proximal = config.get("paft_l1_mode") == "proximal"
    return why_not_optimizer("optimizer", name) + (why_not_proximal("optimizer", name) if proximal else [])
