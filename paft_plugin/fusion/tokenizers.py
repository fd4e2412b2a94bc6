"""Which tokenizer a merged model gets: always the base's, with its chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paft_plugin.deltas.store import is_adapter, read_json
from paft_plugin.fusion.methods import METHODS
from paft_plugin.fusion.request import RecipeRequest

VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model")
FILES = (*VOCABULARY_FILES, "chat_template.jinja")


def needs_tokenizer(request: RecipeRequest) -> bool:
    """Whether a recipe must name the base's tokenizer.

    With a `base_model` mergekit copies the base's files. Without one (linear) it takes the tokenizer of whichever model
    comes first out of a set: harmless for adapters, which stand for their base, but not for models with another tokenizer.
    Naming the source always would cost a base whose vocabulary is padded its padding rows.
    """
    if METHODS[request.method].on_deltas:
        return False
    models = [branch for branch in (request.sft, request.preference) if not is_adapter(branch)]
    return not all(same_tokenizer(model, request.base) for model in models)


def missing_tokenizer(request: RecipeRequest, branch: Path) -> list[str]:
    """A problem if the merge may look for a tokenizer in a model's folder that has none."""
    looks_there = not METHODS[request.method].on_deltas and not is_adapter(branch)
    if not looks_there or any((branch / file).is_file() for file in VOCABULARY_FILES):
        return []
    return [
        f"{branch}: no tokenizer, and {request.method} may take it from any model. Copy the base's tokenizer files there."
    ]


def same_tokenizer(one: Path, other: Path) -> bool:
    """Whether two folders hold the same tokenizer and chat template."""
    return _tokenizer(one) == _tokenizer(other)


def _tokenizer(folder: Path) -> list[Any]:
    """What makes two tokenizers the same: the files' bytes, and the chat template wherever it is kept."""
    contents: list[Any] = [(folder / file).read_bytes() if (folder / file).is_file() else None for file in FILES]
    config = folder / "tokenizer_config.json"
    return [*contents, read_json(config).get("chat_template") if config.is_file() else None]
