"""What comes from the hub: whether we may read a repository, with the way out for every answer, and the base model's folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from paft_plugin.errors import Findings, PaftError, collecting, one_line, raise_if_any
from paft_plugin.files import read_json_or_nothing
from paft_plugin.pipeline.config import BranchSpec, PaftConfig

TIMEOUT = 5.0  # seconds
Kind = Literal["model", "dataset"]
WANTED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.py")
"""Weights as safetensors, configuration and tokenizer. No pickles: loading one runs whatever code is in it."""
UNWANTED = ("original/*", "consolidated*", "onnx/*", "openvino/*", "*.onnx*", "*.gguf", "*.msgpack", "*.h5")


def offline() -> bool:
    """Whether the hub must not be asked."""
    from huggingface_hub import constants

    return bool(constants.is_offline_mode())


def endpoint() -> str:
    """Where the hub is; `HF_ENDPOINT` moves it."""
    from huggingface_hub import constants

    return os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/")


def access(name: str, kind: Kind = "model", timeout: float = TIMEOUT) -> Findings:
    """Whether `name`, such as org/model, can be downloaded: a problem if the hub says no, a warning if it does not say."""
    import httpx
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    what = f"{kind} {name}"
    url = f"{endpoint()}/api/{kind}s/{name}/auth-check"
    try:
        hf_raise_for_status(get_session().get(url, headers=build_hf_headers(), timeout=timeout))
    except GatedRepoError:
        return Findings([f"The {what} is gated, and you may not read it. {_accept(name, kind)}"])
    except RepositoryNotFoundError:
        return Findings([f"There is no {what} on the hub, or it is private. Check the name, or run `hf auth login`."])
    except OfflineModeIsEnabled:
        return Findings(warnings=[f"The {what} could not be checked: HF_HUB_OFFLINE is set."])
    except HfHubHTTPError as error:
        return _refused(what, name, kind, getattr(error.response, "status_code", 0))
    except httpx.TimeoutException:
        return Findings(warnings=[f"The {what} could not be checked: {endpoint()} does not answer. It may later."])
    except (httpx.HTTPError, OSError) as error:
        return Findings(warnings=[f"The {what} could not be checked: {endpoint()} cannot be reached ({error})."])
    return Findings()


def _refused(what: str, name: str, kind: Kind, status: int) -> Findings:
    if status == 401:
        return Findings(
            [
                f"The hub refuses the {what}: you are not logged in, or your token is no longer valid. Run `hf auth login`."
            ]
        )
    if status == 403:
        return Findings([f"The hub refuses you the {what}. {_accept(name, kind)}"])
    return Findings(warnings=[f"The {what} could not be checked: the hub answers with {status}. It may work later."])


def _accept(name: str, kind: Kind) -> str:
    page = f"{endpoint()}/{'datasets/' if kind == 'dataset' else ''}{name}"
    return f"Accept its terms on {page}, then run `hf auth login` with a token that may read gated repositories."


# --- the base model -----------------------------------------------------------------------------------------------------


def base_folder(config: PaftConfig, download: bool) -> Path:
    """The base model's folder: the one that `paft.yml` names, or the hub's in the local cache, after a `download` if need be.

    Raises:
        PaftError: It is not there and may not be fetched, the hub refuses it, or it has no safetensors.
    """
    name = config.base
    folder = _cached(name, download) if config.base_is_remote else Path(name)
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
    raise_if_any(problems)
    return folder


def with_folders(config: PaftConfig, download: bool) -> PaftConfig:
    """`config` with the folder of every trained branch that it names by its hub name.

    Raises:
        PaftError: All that are not there and may not be fetched, or that the hub refuses.
    """
    problems: list[str] = []

    def here(spec: BranchSpec) -> BranchSpec:
        if spec.is_remote:
            with collecting(problems):
                return spec.model_copy(update={"trained": _cached(str(spec.trained), download, "trained")})
        return spec

    compare = config.compare.model_copy(update={name: here(spec) for name, spec in config.compare.branches.items()})
    fused = {name: here(spec) for name, spec in config.fused.items()}
    raise_if_any(problems)
    return config.model_copy(update={"compare": compare, **(fused if not config.branches else {"branches": fused})})


def cached_folder(name: str) -> Path | None:
    """Where the hub's cache has what was fetched of a model, whole or not; None if nothing."""
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(_snapshot(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def _cached(name: str, download: bool, key: str = "base") -> Path:
    folder = cached_folder(name)
    if folder is not None and _complete(folder):
        return folder
    if not download:
        raise PaftError(
            f"{key}: {name} is not in the local cache. Fetch it with `hf download {name}`, or start the run."
        )
    if offline():
        raise PaftError(
            f"{key}: {name} is not in the local cache, and HF_HUB_OFFLINE is set. Unset it, or fetch the model elsewhere and "
            f"give its folder as `{key}:`."
        )
    raise_if_any(access(name).problems)
    return _downloaded(name, key)


def _downloaded(name: str, key: str) -> Path:
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(_snapshot(name, local_files_only=False))
    except (HfHubHTTPError, LocalEntryNotFoundError, httpx.HTTPError) as error:
        text = one_line(error)
        raise PaftError(
            f"{key}: {name} cannot be downloaded ({text}). What has arrived is kept: run it again."
        ) from None
    except OSError as error:
        raise PaftError(
            f"{key}: {name} cannot be written into the hub's cache ({error}). Make room, or set HF_HOME."
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
