"""What a training takes of a device's memory, estimated from its axolotl config and its base model; torch is not imported.

With P parameters, of which N train, T tokens a micro-batch (`micro_batch_size` × `sequence_len`, twice that where chosen and
rejected answers run together), L layers of width d (keys: k, feed-forward: f), vocabulary V, and b bytes a number in the model's
dtype (bf16 and fp16: 2, fp32: 4):

- weights: b·P. In 8 bit 1, in 4 bit 0.53 for each entry of a linear layer (NF4 with double quantization: Dettmers et al.,
  arXiv 2305.14314, §3), and 4 for each of the rest, which PEFT keeps in fp32 then.
- adapter: 4·r·(in + out) for each adapted layer, because PEFT keeps A and B in fp32; modules that are saved whole.
- gradients: 4·N with an adapter, else b·N.
- optimizer: Adam keeps two numbers like a gradient's; in 8 bit two bytes, but eight for embeddings; others less.
- activations: T·L·(8 d + 2 k + 4 f)·b, what torch saves for the backward pass of a decoder layer with SwiGLU, RMSNorm and SDPA
  (tests/pipeline/estimate/test_memory.py counts it); in half precision the fp32 inputs of norms and adapters on top, 4·d and
  2·(3 d + f); eager attention's scores (Korthikanti et al., arXiv 2205.05198, §4). With gradient checkpointing T·L·d·b, the
  layers' inputs, and one whole layer. On a CPU with an adapter all of it twice, because glibc's heap falls to pieces (less so
  with `MALLOC_MMAP_THRESHOLD_=65536`).
- logits: T·V·(b + 12), in fp32 12: logits, their fp32 copy, the softmax, the gradient. A reference pass adds T·V·(b + 4).
- reference: a second model, for full-parameter DPO and KTO.
- penalty: θ_pre in the model's dtype for full fine-tuning, unless `paft_reference: host`; a row block for LoRA, 64 MiB.
- process: what CUDA (750 MiB) or, on a CPU, Python and the libraries (950 MiB) take before anything is loaded.

To all of it 15 % is added. `python -m paft_plugin.benchmarks memory` compares it with real runs on a CPU, `… gpu` with
those of SFT branches on a GPU, where it has not been run yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import prod
from pathlib import Path
from typing import Any

from paft_plugin.args import STRATEGIES, STRENGTHS
from paft_plugin.errors import one_line
from paft_plugin.pipeline.estimate.shapes import (
    MOST_LAYERS,
    Shapes,
    count,
    is_embedding,
    is_linear,
    model_config_of,
    weight_shapes,
)
from paft_plugin.reading import matches

ADDED = 0.15
"""Share that is added to what the formula gives."""
CUDA_PROCESS, CPU_PROCESS = 750 << 20, 950 << 20
_FRAGMENTED = 2
"""With an adapter on a CPU: so many results live so shortly that glibc's heap holds about twice what is alive."""
_ROW_BLOCK = 64 << 20
_FP32 = 4
_NF4 = 0.53
_WITH_REFERENCE = {"dpo", "ipo", "kto"}
_FUSED_LOSS = ("cut_cross_entropy", "liger_fused_linear_cross_entropy", "chunked_cross_entropy")


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, by what takes them; all zero where nothing can be said."""

    weights: float = 0
    adapter: float = 0
    gradients: float = 0
    optimizer: float = 0
    activations: float = 0
    logits: float = 0
    reference: float = 0
    penalty: float = 0
    process: float = 0
    unknown: str = ""
    """Why nothing can be said."""

    @property
    def total(self) -> int:
        """With what is added to be safe; 0: unknown."""
        parts = sum(getattr(self, each.name) for each in fields(self) if each.name != "unknown")
        return round(parts * (1 + ADDED))


def estimate_memory(config: Mapping[str, Any], base: Path, *, cpu: bool = False) -> Memory:
    """What the training that the axolotl `config` describes takes on each of its devices, or (`cpu`) of the main memory.

    Keys that axolotl would fill in may be missing, and of the base model a config.json will do.
    """
    model, shapes = model_config_of(base), weight_shapes(base)
    if unknown := _unknown(config, base, model, shapes):
        return Memory(unknown=unknown)
    try:
        found = _estimated(config, model, shapes, cpu)
        return found if found.total > 0 else Memory(unknown="a setting is below 0")
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # axolotl says what it does not take; here there is only nothing to calculate with.
        return Memory(unknown=f"a setting is of a wrong kind ({one_line(error, 100)})")


def _estimated(config: Mapping[str, Any], model: Mapping[str, Any], shapes: Shapes, cpu: bool) -> Memory:
    width = dtype_bytes(config)
    trains = trained_shapes(config, shapes)
    adapted = bool(config.get("adapter"))
    number = _FP32 if adapted else width
    weights = _weight_bytes(config, shapes, width)
    return Memory(
        weights=weights,
        adapter=number * count(trains) if adapted else 0,
        gradients=number * count(trains),
        optimizer=optimizer_bytes(config, trains, number),
        activations=_activation_bytes(config, model, width) * (_FRAGMENTED if cpu and adapted else 1),
        logits=_logit_bytes(config, model, width),
        reference=weights if not adapted and config.get("rl") in _WITH_REFERENCE else 0,
        penalty=_penalty_bytes(config, weights),
        process=CPU_PROCESS if cpu else CUDA_PROCESS,
    )


def _unknown(config: Mapping[str, Any], base: Path, model: Mapping[str, Any], shapes: Shapes) -> str:
    wanted = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    if not shapes or any(type(model.get(key)) is not int or model[key] < 1 for key in wanted):
        return f"{base} holds no config.json and weights of a decoder that is known here"
    if model["num_hidden_layers"] > MOST_LAYERS:
        return f"{base} has {model['num_hidden_layers']} layers, says its config.json"
    if any(len(shape) == 3 for shape in shapes.values()) or any(".experts." in name for name in shapes):
        return "mixtures of experts are not estimated"
    for key in ("fsdp", "fsdp_config", "deepspeed", "tensor_parallel_size", "context_parallel_size"):
        if config.get(key) not in (None, 1, [], {}):
            return f"{key} splits the model over devices, which is not estimated"
    return "" if config.get("micro_batch_size") else "micro_batch_size is not set"


# --- the model -----------------------------------------------------------------------------------------------------------


def dtype_bytes(config: Mapping[str, Any]) -> int:
    """Bytes a number of the model takes: axolotl loads bf16 or fp16 where the config asks for them, else fp32."""
    halves = ("bf16", "bfloat16", "fp16", "float16", "load_in_8bit")
    return 2 if any(config.get(key) for key in halves) else 4


def trained_shapes(config: Mapping[str, Any], shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Name → shape of what trains: an adapter's factors and the modules it saves whole, or the model."""
    if not config.get("adapter"):
        return dict(shapes)
    rank = int(config.get("lora_r") or 8)
    found: dict[str, tuple[int, ...]] = {}
    whole = config.get("lora_modules_to_save") or []
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        if any(module == each or module.endswith(f".{each}") for each in whole):
            found[name] = shape
        elif len(shape) == 2 and _is_target(config, name, shape):
            found[f"{module}.lora_A"], found[f"{module}.lora_B"] = (rank, shape[1]), (shape[0], rank)
    return found


def _is_target(config: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> bool:
    targets = config.get("lora_target_modules") or []
    module = name.removesuffix(".weight")
    if config.get("lora_target_linear") or targets == "all-linear":
        return is_linear(name, shape)
    if isinstance(targets, str):  # PEFT reads a string as a regular expression
        return matches(targets, module)
    return any(module == target or module.endswith(f".{target}") for target in targets)


def _weight_bytes(config: Mapping[str, Any], shapes: Shapes, width: int) -> float:
    packed = _NF4 if config.get("load_in_4bit") else 1.0 if config.get("load_in_8bit") else 0.0
    if not packed:
        return width * count(shapes)
    linear = sum(prod(shape) for name, shape in shapes.items() if is_linear(name, shape))
    return packed * linear + _FP32 * (count(shapes) - linear)


def optimizer_bytes(config: Mapping[str, Any], trains: Shapes, number: int) -> float:
    """What the optimizer remembers of what trains, `number` bytes a number."""
    name = str(getattr(config.get("optimizer"), "value", config.get("optimizer") or "adamw_torch_fused")).lower()
    total = count(trains)
    embeddings = sum(prod(shape) for module, shape in trains.items() if is_embedding(module))
    if "paged" in name:
        return 0.0  # in main memory, and on the device only as far as there is room
    if "8bit" in name or "4bit" in name:  # transformers keeps embeddings at 32 bits
        return 2.0 * (total - embeddings) + 8.0 * embeddings
    if "adafactor" in name:
        return number * sum(sum(shape) for shape in trains.values())
    if name.startswith(("sgd", "lion", "muon", "rmsprop", "adagrad")):
        return float(number * total)
    return 2.0 * number * total


# --- what a batch takes --------------------------------------------------------------------------------------------------


def _tokens(config: Mapping[str, Any]) -> int:
    """Of one micro-batch, when every row is as long as it may be."""
    # KTO's second half: the mismatched answers of its KL term.
    rows = int(config["micro_batch_size"]) * (2 if config.get("rl") in STRATEGIES else 1)
    return rows * int(config.get("sequence_len") or 512)


def _activation_bytes(config: Mapping[str, Any], model: Mapping[str, Any], width: int) -> float:
    hidden, inner, heads = model["hidden_size"], model["intermediate_size"], model["num_attention_heads"]
    keys = hidden * (model.get("num_key_value_heads") or heads) // heads
    layer = width * (8 * hidden + 2 * keys + 4 * inner)
    if width < _FP32:
        layer += _FP32 * hidden  # norms work in fp32
    if width < _FP32 and config.get("adapter"):
        layer += 2 * (3 * hidden + inner)  # and so do adapters
    if config.get("adapter") and config.get("lora_dropout"):
        layer += (width + 1) * (6 * hidden + inner)
    if config.get("attn_implementation") == "eager" or config.get("eager_attention"):
        layer += (2 * width + _FP32) * heads * int(config.get("sequence_len") or 512)
    gradients = 2 * width * (hidden + inner)  # of the layer that the backward pass is at
    layers = model["num_hidden_layers"]
    checkpointing = config.get("gradient_checkpointing")
    inputs = width * hidden * layers if checkpointing is True else 0  # `offload` moves them away
    kept = layer + inputs if checkpointing else layers * layer
    return float(_tokens(config) * (kept + gradients))


def _logit_bytes(config: Mapping[str, Any], model: Mapping[str, Any], width: int) -> float:
    if any(config.get(key) for key in _FUSED_LOSS):
        return 0.0
    each = 3 * _FP32 + (width if width < _FP32 else 0)
    if config.get("rl") in _WITH_REFERENCE:
        each += width + _FP32
    return float(_tokens(config) * model["vocab_size"] * each)


def _penalty_bytes(config: Mapping[str, Any], weights: float) -> float:
    if all(config.get(key) is None for key in STRENGTHS):
        return 0.0
    if config.get("adapter"):
        return float(_ROW_BLOCK)
    return 0.0 if config.get("paft_reference") == "host" else weights
