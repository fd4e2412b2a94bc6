"""Does a merge hold every tensor of a model, for every text model that transformers knows, and for models that see?

`python -m tests.fusion.merge.every_architecture [TYPE…]`, 8 minutes on 2 cores. For each model type: a small random model, two
branches that differ from it everywhere, their sum by `axolotl paft merge` and by hand, both loaded by transformers and compared.
One line each; paft_plugin/fusion/LOG.md keeps what came of it.
"""

from __future__ import annotations

import inspect
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from paft_plugin.errors import PaftError, first_line
from paft_plugin.fusion.merge import open_fusion, write_fusion
from tests.fusion.merge.by_hand import branch, loaded, summed, with_tensors
from tests.fusion.merge.tools import METHODS, content, load_all, reference, save

LARGEST = 30_000_000  # parameters
# The names that architectures have for the sizes that make them small.
WIDTH = ("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "hidden_dim", "attention_hidden_size", "lru_width")
INNER = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "decoder_ffn_dim", "encoder_ffn_dim")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads", "encoder_attention_heads")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "mamba_n_heads")
TWO = ("num_key_value_heads", "num_experts_per_tok", "moe_k", "moe_topk", "num_attention_groups", "pad_token_id")
ONE = (
    "n_shared_experts",
    "n_group",
    "topk_group",
    "first_k_dense_replace",
    "mamba_n_groups",
    "n_groups",
    "moe_num_shared_experts",
)
FOUR = ("qk_rope_head_dim", "qk_nope_head_dim", "rotary_dim")
EIGHT = ("head_dim", "v_head_dim", "q_lora_rank", "kv_lora_rank", "state_size", "mamba_d_state", "mamba_chunk_size")
SIXTEEN = ("moe_intermediate_size", "shared_expert_intermediate_size", "mamba_d_head", "sliding_window")
SIZES: dict[str, Any] = {
    "attention_bias": True,
    **dict.fromkeys(("vocab_size", "max_position_embeddings", "n_positions"), 64),
    **{
        name: size
        for size, names in {
            32: WIDTH, 48: INNER, 4: (*HEADS, *EXPERTS, *FOUR), 2: (*LAYERS, *TWO), 1: ONE, 8: EIGHT, 16: SIXTEEN
        }.items()
        for name in names
    },
}  # fmt: skip

TEXT = {
    **{"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "tie_word_embeddings": False},
}
ROTARY = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
SIGHT = {
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"image_size": 28, "patch_size": 14},
}
QWEN_SIGHT = {
    **{"depth": 4, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32, "patch_size": 14},
    **{
        "deepstack_visual_indexes": [0, 1, 2],
        "num_position_embeddings": 16,
        "fullatt_block_indexes": [1],
        "embed_dim": 32,
    },
}


def seeing(text: str, vision: str, **more: Any) -> dict[str, Any]:
    """The config of a model of two parts, each of a type of its own."""
    return {
        "text_config": {"model_type": text, **TEXT},
        "vision_config": {"model_type": vision, **SIGHT},
        "image_token_index": 5,
        **more,
    }


VISION: dict[str, dict[str, Any]] = {
    "llava": seeing("llama", "clip_vision_model"),
    "llava_next": seeing("llama", "clip_vision_model"),
    "vipllava": seeing("llama", "clip_vision_model"),
    "llava_onevision": seeing("qwen2", "siglip_vision_model"),
    "aya_vision": seeing("cohere2", "siglip_vision_model"),
    "mistral3": seeing("mistral", "pixtral", vision_config={"model_type": "pixtral", **SIGHT, "head_dim": 8}),
    "paligemma": seeing(
        "gemma", "", vision_config={"model_type": "siglip_vision_model", **SIGHT, "projection_dim": 32}
    ),
    "internvl": {
        "text_config": {"model_type": "qwen2", **TEXT},
        "vision_config": {**SIGHT, "image_size": [28, 28], "patch_size": [14, 14]},
    },
    "idefics3": {"text_config": {"model_type": "llama", **TEXT}, "vision_config": SIGHT, "scale_factor": 2},
    "smolvlm": {"text_config": {"model_type": "llama", **TEXT}, "vision_config": SIGHT, "scale_factor": 2},
    "gemma3": {"text_config": TEXT, "vision_config": SIGHT, "mm_tokens_per_image": 4},
    "llama4": {
        "text_config": {**TEXT, "num_local_experts": 4, "intermediate_size_mlp": 48},
        "vision_config": {
            **SIGHT,
            **dict.fromkeys(("vision_output_dim", "projector_input_dim", "projector_output_dim"), 32),
        },
    },
    **{
        kind: {"text_config": {**TEXT, **more, "rope_parameters": ROTARY}, "vision_config": QWEN_SIGHT}
        for kind, more in {
            "qwen2_vl": {},
            "qwen2_5_vl": {},
            "qwen3_vl": {},
            "qwen3_vl_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
        }.items()
    },
}


def small(kind: str) -> PreTrainedConfig:
    """A config with as many of the small sizes as the architecture takes together."""
    made = CONFIG_MAPPING[kind]
    if kind in VISION:
        return made(**VISION[kind])
    known = {*inspect.signature(made).parameters, *made().to_dict(), *made.attribute_map}
    sizes = {name: size for name, size in SIZES.items() if name in known}
    while True:
        try:
            return made(**sizes)
        except Exception as error:
            refused = [name for name in sizes if name in str(error)]
            if not refused:
                raise
            for name in refused:
                del sizes[name]


def verdict(kind: str, folder: Path) -> str:
    """What becomes of one model type."""
    reader: Any = AutoModelForImageTextToText if kind in VISION else AutoModelForCausalLM
    try:
        config = small(kind)
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in reader.from_config(config).parameters())
        if count > LARGEST:
            return f"not small: {count} parameters"
        torch.manual_seed(0)
        model = reader.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.02 * torch.randn_like(parameter)
        model.save_pretrained(folder / "base")
    except Exception as error:  # of any kind: it is transformers that cannot make it
        return f"cannot be made: {first_line(error)}"
    base = folder / "base"
    branches = [branch(base, folder / f"branch-{seed}", seed) for seed in (1, 2)]
    try:
        fusion = open_fusion(save(content("task_arithmetic", base, *map(reference, branches)), folder / "r.yml"))
        write_fusion(fusion, folder / "out")
    except PaftError as error:
        return f"refused: {first_line(error)}"
    by_hand = with_tensors(base, folder / "by hand", summed(base, branches, METHODS["task_arithmetic"][0]["weight"]))
    (expected, nothing), (got, missing) = loaded(by_hand, reader), loaded(folder / "out", reader)
    same = set(load_all(base)) == set(load_all(folder / "out")) and missing == nothing and set(got) == set(expected)
    same = same and all(torch.allclose(got[name].float(), one.float(), atol=1e-6) for name, one in expected.items())
    return f"{'exact' if same else 'DIFFERENT'}; mergekit lacks {len(fusion.lacking)} of {len(fusion.places)} tensors"


def main(kinds: list[str]) -> None:
    """Print a line for each model type."""
    transformers.logging.set_verbosity_error()
    logging.disable(logging.CRITICAL)
    for kind in kinds or sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *VISION}):
        with tempfile.TemporaryDirectory() as name:
            print(f"{kind:28}{verdict(kind, Path(name))}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
