"""Asking the hub: may we read this repository? One short question, with the way out for every answer."""

from __future__ import annotations

import os
from typing import Literal

from paft_plugin.errors import Findings, PaftError

TIMEOUT = 5.0  # seconds
Kind = Literal["model", "dataset"]


def offline() -> bool:
    """Whether the hub must not be asked."""
    from huggingface_hub import constants

    return bool(constants.is_offline_mode())


def endpoint() -> str:
    """Where the hub is; `HF_ENDPOINT` moves it."""
    from huggingface_hub import constants

    return os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/")


def access(name: str, kind: Kind = "model", timeout: float = TIMEOUT) -> Findings:
    """Whether `name` can be downloaded: a problem if the hub says no, a warning if it does not say.

    Args:
        name: Such as org/model.
        kind: What is there.
        timeout: Seconds to wait for the hub.
    """
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


def raise_unless_allowed(name: str) -> None:
    """Ask before a download.

    Raises:
        PaftError: The hub says no.
    """
    if problems := access(name).problems:
        raise PaftError(problems)
