"""Stand-ins for what lives on the hub: each base model's config and tokenizer, and rows in the shape of each data set."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG_ROOT = Path(__file__).parents[2] / "axolotl_configs"
CONFIGS = sorted(CONFIG_ROOT.glob("*/*-*.yml"))


@dataclass(frozen=True)
class Base:
    """What axolotl asks of a base model before it loads weights; tokens as in the real tokenizer."""

    model_type: str
    special_tokens: tuple[str, ...]
    bos: str | None
    eos: str
    pad: str | None
    chat_template: str | None = None


_LLAMA_3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"

BASES = {
    # Qwen's tokenizer has no BOS and, unlike the other bases', a chat template: the configs must override it.
    "Qwen/Qwen2.5-0.5B": Base(
        "qwen2",
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        bos=None,
        eos="<|endoftext|>",
        pad="<|endoftext|>",
        chat_template=_CHATML,
    ),
    "meta-llama/Llama-3.2-3B": Base(
        "llama", (*_LLAMA_3, "<|finetune_right_pad_id|>"), "<|begin_of_text|>", "<|end_of_text|>", pad=None
    ),
    "mistralai/Mistral-7B-v0.1": Base("mistral", ("<unk>", "<s>", "</s>"), "<s>", "</s>", pad=None),
    "meta-llama/Meta-Llama-3-8B": Base(
        "llama", (*_LLAMA_3, "<|reserved_special_token_0|>"), "<|begin_of_text|>", "<|end_of_text|>", pad=None
    ),
}


def make_base(name: str, folder: Path) -> Path:
    """Write the stand-in for base model `name` under `folder`; the path ends with its name, which axolotl looks at too."""
    base, path = BASES[name], folder / name
    make_tokenizer(base).save_pretrained(path)
    (path / "config.json").write_text(json.dumps({"model_type": base.model_type}), encoding="utf-8")
    return path


def make_tokenizer(base: Base) -> Any:
    """One token a byte, after the special tokens; a BOS is put before every text, as the real tokenizers do."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = [*base.special_tokens, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    core = Tokenizer(models.BPE(vocabulary, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    if base.bos:
        core.post_processor = processors.TemplateProcessing(
            single=f"{base.bos} $A", special_tokens=[(base.bos, vocabulary[base.bos])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=base.bos,
        eos_token=base.eos,
        pad_token=base.pad,
        additional_special_tokens=list(base.special_tokens),
        chat_template=base.chat_template,
    )


def turns(*contents: str) -> list[dict[str, str]]:
    """A conversation, user first; the data sets' messages have their keys in this order."""
    return [{"content": text, "role": ("user", "assistant")[index % 2]} for index, text in enumerate(contents)]


# Answers that have tripped mappings: part of the template's own markers, braces and line breaks, non-ASCII text, nothing at all.
PAIRS = [
    ("Name a pronoun.", "I", "Response"),
    ("Write a set in Python,\nthen in maths.", "{1, 2}\n\nand {x | x > 0}", "{prompt}"),
    ("Übersetze: θ_pre", "θ, vor dem Training.", ""),
]
DIALOGUES = [
    turns(*PAIRS[0][:2], "And another?", "You."),
    turns(*PAIRS[1][:2]),
    turns(*PAIRS[2][:2], "Danke!", " Gern. "),
]


def ultrachat_rows(conversations: Iterable[list[dict[str, str]]]) -> list[dict[str, Any]]:
    """Rows as in HuggingFaceH4/ultrachat_200k, split train_sft."""
    return [
        {"prompt": messages[0]["content"], "prompt_id": f"{index:064x}", "messages": messages}
        for index, messages in enumerate(conversations)
    ]


def ultrafeedback_rows() -> list[dict[str, Any]]:
    """Rows as in HuggingFaceH4/ultrafeedback_binarized, split train_prefs: `messages` holds the chosen answer as well."""
    return [
        {
            "prompt": prompt,
            "prompt_id": f"{index:064x}",
            "chosen": turns(prompt, chosen),
            "rejected": turns(prompt, rejected),
            "messages": turns(prompt, chosen),
            "score_chosen": 8.5,
            "score_rejected": 4.0,
        }
        for index, (prompt, chosen, rejected) in enumerate(PAIRS)
    ]


def argilla_rows() -> list[dict[str, Any]]:
    """Rows as in argilla/ultrafeedback-binarized-preferences-cleaned, split train."""
    return [
        {
            "source": "evol_instruct",
            "prompt": prompt,
            "chosen": turns(prompt, chosen),
            "chosen-rating": 5.0,
            "chosen-model": "gpt-4",
            "rejected": turns(prompt, rejected),
            "rejected-rating": 3.5,
            "rejected-model": "alpaca-7b",
        }
        for prompt, chosen, rejected in PAIRS
    ]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
