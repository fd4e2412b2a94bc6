"""The base model as a folder: the one that `paft.yml` names, or the hub's in the local cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paft_plugin.errors import PaftError, one_line
from paft_plugin.files import read_json_or_nothing
from paft_plugin.pipeline.config import PaftConfig
from paft_plugin.pipeline.hub import offline, raise_unless_allowed

WANTED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.py")
"""Weights as safetensors, configuration and tokenizer. No pickles: loading one runs whatever code is in it."""
UNWANTED = ("original/*", "onnx/*", "openvino/*", "*.onnx*", "*.gguf", "*.msgpack", "*.h5")


def base_folder(config: PaftConfig, download: bool) -> Path:
    """The folder of the base model.

    Args:
        config: From `paft.yml`.
        download: Whether a hub base that is not in the local cache may be fetched.

    Raises:
        PaftError: It is not there and may not be fetched, the hub refuses it, or it has no safetensors.
    """
    folder = _cached(config.base, download) if config.base_is_remote else Path(config.base)
    _check(folder, config.base)
    return folder


def cached_folder(name: str) -> Path | None:
    """Where the hub's cache has what was fetched of a model, whole or not; None if nothing."""
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(_snapshot(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def _cached(name: str, download: bool) -> Path:
    folder = cached_folder(name)
    if folder is not None and _complete(folder):
        return folder
    if not download:
        raise PaftError(
            f"base: {name} is not in the local cache. Fetch it with `hf download {name}`, or start the run."
        )
    if offline():
        raise PaftError(
            f"base: {name} is not in the local cache, and HF_HUB_OFFLINE is set. Unset it, or fetch the model elsewhere and "
            "give its folder as `base:`."
        )
    raise_unless_allowed(name)
    return _downloaded(name)


def _downloaded(name: str) -> Path:
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(_snapshot(name, local_files_only=False))
    except (HfHubHTTPError, LocalEntryNotFoundError, httpx.HTTPError) as error:
        text = one_line(error)
        raise PaftError(
            f"base: {name} cannot be downloaded ({text}). What has arrived is kept: run it again."
        ) from None
    except OSError as error:
        raise PaftError(
            f"base: {name} cannot be written into the hub's cache ({error}). Make room, or set HF_HOME."
        ) from None


def _snapshot(name: str, **options: Any) -> str:
    from huggingface_hub import snapshot_download

    return str(snapshot_download(name, allow_patterns=list(WANTED), ignore_patterns=list(UNWANTED), **options))


def _complete(folder: Path) -> bool:
    """Whether a cached snapshot has its weights: transformers alone may have fetched no more than the configuration."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return any(folder.glob("*.safetensors"))
    shards = read_json_or_nothing(index).get("weight_map")
    return isinstance(shards, dict) and all((folder / str(file)).is_file() for file in shards.values())


def _check(folder: Path, name: str) -> None:
    problems = []
    if not (folder / "config.json").is_file():
        problems.append(
            f"base: {name} has no config.json. Give the folder or the hub name of a model for transformers."
        )
    if not any(folder.glob("*.safetensors")):
        problems.append(
            f"base: {name} has no safetensors, and other formats (pickles) are not loaded. Convert it: load it with "
            "transformers, save_pretrained, and give that folder."
        )
    if problems:
        raise PaftError(problems)
