"""The shapes of a base model's weights, without torch: from the headers of its safetensors files, else from its config.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

from paft_plugin.files import read_json_or_nothing
from paft_plugin.reading import read_header

MOST_LAYERS = 10_000
"""The deepest models have some hundreds."""
Shapes = Mapping[str, tuple[int, ...]]


def model_config_of(base: Path) -> dict[str, Any]:
    """The base's config.json, of a multimodal one the part on text; empty if there is none that can be read."""
    content = read_json_or_nothing(base / "config.json")
    text = content.get("text_config")
    return text if isinstance(text, dict) else content


def weight_shapes(base: Path) -> Shapes:
    """Name → shape of every weight in the folder `base`; worked out from its config where no weights lie; else empty."""
    files = sorted(base.glob("*.safetensors"))
    try:
        return {name: shape for file in files for name, shape in _header(file)} or decoder_shapes(model_config_of(base))
    except (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError):
        return {}


def count(shapes: Shapes) -> int:
    """Parameters in all."""
    return sum(prod(shape) for shape in shapes.values())


def is_linear(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a weight is a linear layer's inside the decoder: what LoRA adapts and quantization packs."""
    return len(shape) == 2 and name.endswith(".weight") and not is_embedding(name)


def is_embedding(name: str) -> bool:
    """Whether a weight is the input embedding or the output head."""
    return any(part in name for part in ("embed", "wte", "wpe", "lm_head"))


def _header(file: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, tensor in read_header(file)[1].items():
        yield name, tuple(tensor["shape"])


def decoder_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """What a config asks for of a Llama-like decoder: Llama, Mistral, Qwen2, Gemma … differ by biases and norms alone."""
    if not config:
        return {}
    if config["num_hidden_layers"] > MOST_LAYERS:
        raise ValueError(f"{config['num_hidden_layers']} layers")
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries = config["num_attention_heads"] * head
    keys = (config.get("num_key_value_heads") or config["num_attention_heads"]) * head
    layer = {
        "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, queries),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for index in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (vocabulary, hidden)
    return shapes
