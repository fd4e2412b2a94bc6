"""What a base model says about itself that a config depends on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paft_plugin.deltas.tokenizer import read_tokenizer
from paft_plugin.errors import PaftError, one_line
from paft_plugin.files import read_json, resolved
from paft_plugin.pipeline.estimate.shapes import count, weight_shapes
from paft_plugin.pipeline.hub import cached_folder

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
    has_template: bool
    pad_token: str | None
    """A token of its vocabulary to pad with, if its tokenizer names none."""

    @property
    def large(self) -> bool:
        """Whether the learning rates of large models are meant for it; in doubt, yes."""
        return self.parameters is None or self.parameters > 2e9


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
        return BaseModel(base, None, None, None, False, None)
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
        has_template=bool(tokenizer and tokenizer.template),
        pad_token=None if pad else next((token for token in PADS if token in known), None),
    )


def sequence_length(base: BaseModel, texts: Sequence[Sequence[str]]) -> tuple[int, str]:
    """`sequence_len` for rows of these texts, and why."""
    if base.folder is None or not texts:
        length = min(USUAL, base.longest or USUAL)
        return length, "a usual length: the rows were not looked at with this base's tokenizer"
    tokenizer: Any = _tokenizer(base.folder)
    counts = sorted(sum(len(tokenizer.encode(text)) + MARKERS for text in row) for row in texts)
    wanted = max(SHORTEST, 2 ** math.ceil(math.log2(max(1, counts[-1]))))
    if base.longest and wanted > base.longest:
        return base.longest, f"all that the base was made for; the longest of the rows looked at has about {counts[-1]}"
    return wanted, f"the longest of {len(counts)} rows looked at has about {counts[-1]} tokens, with the template's"


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises all kinds
        raise PaftError(f"{folder}: transformers cannot load its tokenizer: {one_line(error)}") from None
