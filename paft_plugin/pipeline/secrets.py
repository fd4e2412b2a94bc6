"""Secrets that a user has typed into an axolotl config: which there are, and by which variable their libraries take them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from paft_plugin.formats import PASSWORD_IN_URL

VARIABLES = {
    "comet_api_key": "COMET_API_KEY",
    "hub_token": "HF_TOKEN",
    "hf_token": "HF_TOKEN",
    "wandb_api_key": "WANDB_API_KEY",
    "swanlab_api_key": "SWANLAB_API_KEY",
    "mlflow_tracking_uri": "MLFLOW_TRACKING_URI",
    "mlflow_tracking_password": "MLFLOW_TRACKING_PASSWORD",
    "mlflow_tracking_token": "MLFLOW_TRACKING_TOKEN",
}
"""Key of an axolotl config → the variable that says the same to the library that it is for."""
_SECRET = re.compile(
    r"(^|[_-])(api_?key|secret|secret_?key|password|passwd|webhook(_url)?|access_?key(_id)?|(auth|access|api|hub|hf|tracking)_token)$"
    r"|^token$",
    re.IGNORECASE,
)


def find_secrets(content: Any, key: str = "", place: str = "") -> Iterator[str]:
    """Where secrets are in a config: `comet_api_key`, `datasets[0].path`."""
    if isinstance(content, Mapping):
        for name, value in content.items():
            yield from find_secrets(value, str(name), f"{place}.{name}" if place else str(name))
    elif isinstance(content, list):
        for index, value in enumerate(content):
            yield from find_secrets(value, key, f"{place}[{index}]")
    elif isinstance(content, str) and content and (_SECRET.search(key) or PASSWORD_IN_URL.search(content)):
        yield place


def handed_over(content: Mapping[str, Any]) -> dict[str, str]:
    """The secrets that go through the environment instead of the config: key → variable."""
    return {place: VARIABLES[place] for place in find_secrets(content) if place in VARIABLES}
