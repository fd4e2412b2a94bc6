"""What a base model says about itself that a config depends on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from paft_plugin.deltas.tokenizer import read_tokenizer
from paft_plugin.errors import PaftError, one_line, quietly
from paft_plugin.files import read_json, resolved
from paft_plugin.pipeline.estimate.shapes import count, weight_shapes
from paft_plugin.pipeline.hub import cached_folder
from paft_plugin.pipeline.preflight.row_types import CHATML_TYPES

Size = Literal["small", "medium", "large"]
SHORTEST, USUAL = 64, 2048
MARKERS = 12
"""Tokens that a chat template puts around each text, at most."""
PADS = ("<|finetune_right_pad_id|>", "<|reserved_special_token_0|>", "<|endoftext|>", "<pad>", "[PAD]", "<unk>")


@dataclass(frozen=True)
class BaseModel:
    """A base model, as far as it could be looked at."""

    name: str
    """Absolute path, or hub name."""
    folder: Path | None
    """Where it is on this disk; None if it is not."""
    longest: int | None
    """Tokens that it was made for."""
    parameters: int | None
    template: str | None
    """Its chat template, empty if it has none; None if it could not be looked at."""
    pad_token: str | None
    """A token of its vocabulary to pad with, if its tokenizer names none."""

    @property
    def size(self) -> Size:
        """Whose learning rates are meant for it; in doubt those of large models."""
        if self.parameters is None or self.parameters > 2e9:
            return "large"
        return "medium" if self.parameters > 5e8 else "small"


UNKNOWN = BaseModel("the base", None, None, None, None, None)


def look_at(base: str) -> BaseModel:
    """Look at a base model's folder, or at what the hub's cache has of it.

    Raises:
        PaftError: Neither a folder with a model nor a hub name.
    """
    path = resolved(Path(base))
    folder = path if path.is_dir() else cached_folder(base)
    if folder is None:
        if path.exists() or base.count("/") != 1 or base.startswith((".", "~")):
            raise PaftError(f"{base} is neither a folder nor a hub name like org/model. Check the path.")
        return BaseModel(base, None, None, None, None, None)
    config = read_json(folder / "config.json")
    if not config:
        raise PaftError(f"{folder} has no config.json. Give the folder of a model for transformers.")
    tokenizer = read_tokenizer(folder)
    inner = config.get("text_config") or config
    pad = tokenizer.special.get("pad_token") if tokenizer else None
    known = set(tokenizer.tokens.values()) if tokenizer else set()
    return BaseModel(
        name=str(folder) if path.is_dir() else base,
        folder=folder,
        longest=inner.get("max_position_embeddings"),
        parameters=count(weight_shapes(folder)) or None,
        template=str(tokenizer.template or "") if tokenizer else None,
        pad_token=None if pad else next((token for token in PADS if token in known), None),
    )


def sequence_length(base: BaseModel, texts: Sequence[Sequence[str]]) -> tuple[int, str]:
    """`sequence_len` for rows of these texts, and why."""
    if base.folder is None or not texts:
        length = min(USUAL, base.longest or USUAL)
        return length, "a usual length: the rows were not looked at with this base's tokenizer"
    tokenizer: Any = _tokenizer(base.folder)
    try:
        counts = sorted(sum(len(tokenizer.encode(text)) + MARKERS for text in row) for row in texts)
    except Exception as error:  # tokenizers has no narrower one
        said = f"its tokenizer cannot take the rows ({one_line(error, 200)})"
        raise PaftError(f"{base.folder}: {said}. Copy or save its files again.") from error
    wanted = max(SHORTEST, 2 ** math.ceil(math.log2(max(1, counts[-1]))))
    if base.longest and wanted > base.longest:
        return base.longest, f"all that the base was made for; the longest of the rows looked at has about {counts[-1]}"
    return wanted, f"the longest of {len(counts)} rows looked at has about {counts[-1]} tokens, with the template's"


CHATML = "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
ALPACA_PROMPT = "{system}\n\n### Instruction:\n{prompt}\n\n### Response:\n"


def with_system(base: BaseModel, alpaca: bool, fields: dict[str, str]) -> dict[str, Any]:
    """The entry of a preference data set with a system prompt in a column: one of axolotl's ChatML types, or formats.

    `fields`: `field_system` and `field_prompt`; `alpaca`: the texts are to have that template's markers.

    Raises:
        PaftError: The base is not on this disk, or its chat template has no system prompts.
    """
    if base.folder is None:
        raise PaftError(
            f"--preference-data: its rows have a column {fields['field_system']}, and how that is written depends on the chat "
            f"template of {base.name}, which is not on this disk. Fetch it with `hf download {base.name}`."
        )
    tokenizer: Any = _tokenizer(base.folder)
    if alpaca or not base.template:
        prompt, chosen = ALPACA_PROMPT, f"{{chosen}}{tokenizer.eos_token}"
    else:
        prompt, chosen = _formats(tokenizer)
    usual = CHATML_TYPES.get(fields["field_prompt"])
    if usual and (prompt, chosen) == (CHATML, "{chosen}<|im_end|>") and fields["field_system"] == "system":
        return {"type": usual}
    formats = {
        "prompt_format": prompt,
        "chosen_format": chosen,
        "rejected_format": chosen.replace("{chosen}", "{rejected}"),
    }
    return {"type": {**fields, **formats}}


def _formats(tokenizer: Any) -> tuple[str, str]:
    """The chat template around a system prompt with a question, and around an answer, as formats."""
    asked = [{"role": "system", "content": "SYSTEM-TEXT"}, {"role": "user", "content": "PROMPT-TEXT"}]
    answer = {"role": "assistant", "content": "ANSWER-TEXT"}
    try:
        prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template([*asked, answer], tokenize=False)
    except Exception as error:  # templates raise what they like
        raise PaftError(
            f"--preference-data: the base's chat template takes no system prompt: {one_line(error)}"
        ) from None
    begin = str(tokenizer.bos_token or "")
    texts = [prompt.removeprefix(begin), whole[whole.index("ANSWER-TEXT") :].rstrip()]
    for name in ("system", "prompt"):
        if f"{name.upper()}-TEXT" not in prompt:
            raise PaftError(
                f"--preference-data: the base's chat template leaves the {name} out. Put it into the prompt."
            )
    escaped = [text.replace("{", "{{").replace("}", "}}") for text in texts]
    words = (("SYSTEM-TEXT", "{system}"), ("PROMPT-TEXT", "{prompt}"), ("ANSWER-TEXT", "{chosen}"))
    for word, place in words:
        escaped = [text.replace(word, place) for text in escaped]
    return escaped[0], escaped[1]


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        with quietly():  # its warnings would show what the files say, as it is
            return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises all kinds
        raise PaftError(f"{folder}: transformers cannot load its tokenizer: {one_line(error)}") from None
